"""DES-LOC and every synchronous method as a policy of it: rounds in which those present average what is due."""
