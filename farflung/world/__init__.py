"""The doors: everything that protocol code may ask of the outside, and the small machinery that drives it."""
