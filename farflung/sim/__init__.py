"""The simulated world: virtual time, modelled links, crashes and partitions."""
