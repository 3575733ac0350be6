"""The real world: network, clocks, compute threads and stores of this machine."""
