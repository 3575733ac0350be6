"""A machine on the simulated network, and the moments of a message on it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from farflung.sim.process import Process
from farflung.sim.topology import Place
from farflung.world.address import PeerId
from farflung.world.doors import TrafficMeter

if TYPE_CHECKING:
    from farflung.sim.connection import Connection
    from farflung.sim.network import SimulatedNetwork


class MessageEvent(NamedTuple):
    """A moment in the life of a message at which a fault may strike.

    `phase` is "send" (the sender asked; nothing has left), "sent" (handed to its kernel), "deliver" (arrived; its actor
    has not seen it) or "delivered" (its actor has dealt with it and its effects were carried out).
    """

    phase: str
    source: str
    """Name of the sending node."""
    target: str
    """Name of the receiving node."""
    source_actor: str
    target_actor: str
    kind: str
    """Class name of the message."""
    message: object
    time: float


@dataclass(eq=False)
class Station:
    """A machine on the network; its processes come and go, its counters stay."""

    peer: PeerId
    place: Place
    is_dial_only: bool = False
    """It accepts no connections: behind a NAT or firewall."""
    is_relay: bool = False
    """It passes messages on between stations that cannot reach each other."""
    has_power: bool = True
    process: Process = field(default_factory=Process.dead)
    network: "SimulatedNetwork | None" = None
    """The network door of `process`."""
    connections: "dict[PeerId, Connection]" = field(default_factory=dict[PeerId, "Connection"])
    """By the other end, where this end is open."""
    traffic: TrafficMeter = field(default_factory=TrafficMeter)

    @property
    def name(self) -> str:
        return self.place.name
