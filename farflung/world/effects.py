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


Effect = Send | Run | WakeAt | Note | Introduce
