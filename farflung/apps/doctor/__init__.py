"""`farflung doctor`: tries on this machine, and against a swarm, what the other commands will need."""
