"""What code may ask of the outside: doors, effects, roles, and the host that joins them."""
