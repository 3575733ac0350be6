"""The simulated world: the doors on virtual time, with links, crashes and partitions; one seed replays a run."""

from farflung.sim.faults import Faults, nth
from farflung.sim.simulation import Simulation
from farflung.sim.topology import Link, Topology

__all__ = ["Faults", "Link", "Simulation", "Topology", "nth"]
