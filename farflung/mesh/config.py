"""Times and limits of the directory, and what a node says of itself."""

from dataclasses import dataclass, field

from farflung.wire.certificate import TicketRole
from farflung.world.doors import Contact


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberConfig:
    """Times and limits of a member."""

    lease_seconds: float = 30.0
    """A node that is gone without goodbye is forgotten after this."""
    renew_seconds: float = 10.0
    """Between two renewals of the lease."""
    renewals_per_second_max: float = 200.0
    """Of all nodes together, about: where there are more, each renews less often, and leases last as much longer."""
    publish_seconds_min: float = 0.5
    """What is published faster than this goes out together."""
    retry_seconds: float = 1.0
    """Until an announcement without an answer is repeated; doubles each time, up to `renew_seconds`."""
    follow_seconds: float = 60.0
    """A member follows one rendezvous node for so long, then the next: what one keeps back the others tell."""
    num_records_max: int = 10_000

    def __post_init__(self) -> None:
        if not 0 < self.retry_seconds <= self.renew_seconds < self.lease_seconds:
            raise ValueError("A member retries more often than it renews, and renews before its lease ends.")
        if not self.renewals_per_second_max > 0:
            raise ValueError("renewals_per_second_max must be above 0: without renewals everybody is forgotten.")

    def stretch(self, num_nodes: int) -> float:
        """How many times longer intervals and leases are among so many nodes."""
        return max(1.0, num_nodes / (self.renewals_per_second_max * self.renew_seconds))


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a node says of itself beside its topics."""

    role: TicketRole
    contact: Contact = field(default_factory=Contact)
    site: str = ""
    is_rendezvous: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RendezvousConfig:
    """Times and limits of a rendezvous node."""

    flush_seconds: float = 0.05
    """Changes gather for this long before they are passed on together."""
    renewals_flush_seconds: float = 2.0
    """The same for renewals of leases, which nobody waits for."""
    compare_seconds: float = 5.0
    """Between two comparisons with each other rendezvous node."""
    subscription_seconds: float = 60.0
    """A subscriber that is silent for longer is forgotten."""
    num_records_max: int = 10_000
    num_subscribers_max: int = 10_000
    announces_per_second: float = 4.0
    """Of one node, on average."""
    announces_at_once: float = 20.0
    """Of one node, in a burst."""
    part_bytes_max: int = 32 * 1024
    """Records of one message, so that the directory never delays what is urgent."""

    def __post_init__(self) -> None:
        flushes = (self.flush_seconds, self.renewals_flush_seconds)
        if not (min(flushes) > 0 and max(flushes) < self.compare_seconds < self.subscription_seconds):
            raise ValueError("A rendezvous node flushes more often than it compares, and both within a subscription.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChronicleConfig:
    """Limits of what a node tells about its decisions."""

    decisions_per_answer_max: int = 200
    answers_per_second: float = 2.0
    """To one peer, on average."""
    answers_at_once: float = 10.0
    """To one peer, in a burst."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationsConfig:
    """Times and limits of what a node knows of tickets withdrawn."""

    first_compare_seconds: float = 1.0
    compare_seconds: float = 10.0
    """Between two comparisons with a rendezvous node, in turn."""
    revocations_per_message_max: int = 16
    num_revocations_max: int = 10_000
    """Known at a time; each lasts as long as the ticket would have."""
