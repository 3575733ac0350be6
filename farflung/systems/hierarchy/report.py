"""What a server or a worker tells of itself, for logs, progress bars and tests."""

from collections.abc import Mapping
from dataclasses import dataclass

from farflung.systems.hierarchy.state import ServerState


@dataclass(frozen=True, slots=True)
class ClientReport:
    """One client, over all its leases."""

    num_steps: int
    """Worker steps that were acknowledged to it."""
    num_updates: int
    num_tokens: int
    speed: float
    """Steps per second."""
    loss: float
    """Of its newest update."""
    shard: int
    """-1: none."""
    is_here: bool


@dataclass(frozen=True, slots=True)
class ServerReport:
    """One server."""

    version: int
    """Updates applied."""
    num_steps: int
    """Worker steps acknowledged: the sum over its clients."""
    num_tokens: int
    global_steps: int
    """Worker steps of the whole run, as far as it knows."""
    num_pushes: int
    num_merges: int
    staleness: dict[int, int]
    """How many updates came so many versions after the model that they began from."""
    clients: dict[str, ClientReport]
    is_over: bool

    @property
    def loss(self) -> float:
        """Newest losses of its clients, weighted by their steps."""
        total = sum(client.num_steps for client in self.clients.values())
        return sum(client.loss * client.num_steps for client in self.clients.values()) / total if total else 0.0

    @property
    def mean_staleness(self) -> float:
        """In versions."""
        count = sum(self.staleness.values())
        return sum(versions * number for versions, number in self.staleness.items()) / count if count else 0.0


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """One worker, in one life."""

    num_steps: int
    """Steps that it made."""
    num_steps_taken: int
    """Of these, in updates that were acknowledged."""
    num_updates: int
    """Acknowledged."""
    newest_update: int
    """Number of the newest update that was acknowledged: how many were, over all lives."""
    num_tokens: int
    version: int
    """Of the newest model it got."""
    global_steps: int
    loss: float
    """Of its newest steps."""
    seconds_computing: float
    seconds_waiting: float
    """For servers and links."""
    is_over: bool


def server_report(state: ServerState, here: Mapping[str, bool]) -> ServerReport:
    """What a server has come to; `here`: which clients can be reached."""
    ledger, counters = state.ledger, state.counters
    clients = {
        name: ClientReport(
            num_steps=client.num_steps,
            num_updates=client.num_updates,
            num_tokens=client.num_tokens,
            speed=client.speed,
            loss=client.loss,
            shard=client.shard,
            is_here=here[name],
        )
        for name, client in ledger.clients.items()
    }
    return ServerReport(
        version=counters.version,
        num_steps=ledger.num_steps,
        num_tokens=ledger.num_tokens,
        global_steps=state.global_steps,
        num_pushes=counters.num_pushes,
        num_merges=counters.num_merges,
        staleness=dict(sorted(counters.staleness.items())),
        clients=clients,
        is_over=counters.is_over,
    )
