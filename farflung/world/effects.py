"""What a role may ask for: it returns these values instead of doing anything itself."""

from collections.abc import Callable
from dataclasses import dataclass

from farflung.world.address import Address, PeerId
from farflung.world.doors import Contact


@dataclass(frozen=True, slots=True)
class Send:
    """Send `message` to `destination`."""

    destination: Address
    message: object


@dataclass(frozen=True, slots=True)
class Run:
    """Compute `function(*arguments)`; the result comes back through `Role.finished(job, result, now)`."""

    job: object
    function: Callable[..., object]
    arguments: tuple[object, ...]
    seconds: float
    """What it is expected to cost; the simulator charges this."""


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Call `Role.wake(now)` at this time of the monotonic clock (or soon after)."""

    time: float


@dataclass(frozen=True, slots=True)
class Note:
    """Record a decision and its reason."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Introduce:
    """Tell the network how a peer can be reached."""

    peer: PeerId
    contact: Contact


@dataclass(frozen=True, slots=True)
class Save:
    """Write a value to the store; it is durable before the effects after this one are carried out."""

    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Load:
    """Read a value of the store; it, or None, comes back through `Role.finished(job, value, now)`."""

    job: object
    key: str


@dataclass(frozen=True, slots=True)
class Delete:
    """Forget a value of the store."""

    key: str


@dataclass(frozen=True, slots=True)
class Append:
    """Add a record to a journal; it is synced before the effects after this one are carried out, so that what they
    acknowledge survives a crash."""

    journal: str
    record: bytes


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget a journal's oldest records, once a saved state holds what they say."""

    journal: str
    num_records: int


Effect = Send | Run | WakeAt | Note | Introduce | Save | Load | Delete | Append | Drop
