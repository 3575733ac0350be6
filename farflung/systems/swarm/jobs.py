"""What waits for a block server's device, and what it is expected to cost (pure)."""

from dataclasses import dataclass, field

from farflung.model.lowrank import Additions
from farflung.model.span import Span
from farflung.systems.swarm.config import ServerConfig
from farflung.systems.swarm.messages import Backward, Forward, Step
from farflung.systems.swarm.sessions import ServerSession
from farflung.world.address import Address, PeerId

DECODED_POSITIONS_MAX = 16
"""A step of so few positions is no prompt: one token, or a few that are being guessed."""


@dataclass(slots=True, eq=False)
class StepJob:
    """One accepted step of a session."""

    session: ServerSession
    step: Step
    accepted_at: float
    num_done: int = 0
    """Positions computed so far."""
    waits_until: float = 0.0
    """There was no room for it: it is tried again then."""
    compute_seconds: float = 0.0
    """Of the batches that computed it so far."""
    is_retried_alone: bool = False
    """A batch failed in which it was: by itself it shows whose fault that was."""
    group: tuple[Span, int, int] = field(init=False)
    client: PeerId = field(init=False)

    def __post_init__(self) -> None:
        _, first, last = self.session.key
        self.group = (self.session.span, first, last)
        self.client = self.session.client.peer

    @property
    def num_rows(self) -> int:
        return self.step.hidden.shape[0]

    @property
    def num_positions_left(self) -> int:
        return self.step.hidden.shape[1] - self.num_done

    @property
    def num_tokens_left(self) -> int:
        return self.num_rows * self.num_positions_left

    @property
    def is_decoding(self) -> bool:
        """Whether it is short, so that it need not be cut."""
        return self.step.hidden.shape[1] <= DECODED_POSITIONS_MAX

    @property
    def is_alone(self) -> bool:
        """Whether it cannot be computed with others, nor in pieces."""
        return self.is_retried_alone or not self.session.is_plain or not self.session.span.can_batch


@dataclass(frozen=True, slots=True, eq=False)
class RequestJob:
    """One stateless request, on the span that was offered when it came."""

    source: Address
    request: Forward | Backward
    span: Span
    accepted_at: float
    additions: Additions | None = None

    @property
    def client(self) -> PeerId:
        return self.source.peer

    @property
    def num_tokens_left(self) -> int:
        num_rows, num_positions, _ = self.request.hidden.shape
        return num_rows * num_positions


def cost_seconds(num_blocks: int, num_tokens: int, config: ServerConfig) -> float:
    """Expected device time, for the simulator: the slower of the decode rate and the long-forward rate."""
    return num_blocks * max(1.0 / config.blocks_per_second, num_tokens / config.forward_tokens_per_second)
