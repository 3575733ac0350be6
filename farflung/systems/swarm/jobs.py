"""What waits for a block server's device, and what it is expected to cost (pure)."""

from dataclasses import dataclass

from farflung.model.span import Span
from farflung.systems.swarm.config import ServerConfig
from farflung.systems.swarm.messages import Backward, Forward, Step
from farflung.systems.swarm.sessions import ServerSession
from farflung.world.address import Address


@dataclass(frozen=True, slots=True)
class StepJob:
    """One accepted step of a session."""

    session: ServerSession
    step: Step
    accepted_at: float


@dataclass(frozen=True, slots=True)
class RequestJob:
    """One stateless request, on the span that was offered when it came."""

    source: Address
    request: Forward | Backward
    span: Span
    accepted_at: float


def cost_seconds(job: StepJob | RequestJob, config: ServerConfig) -> float:
    """Expected device time, for the simulator: the slower of the decode rate and the long-forward rate."""
    if isinstance(job, StepJob):
        _, first, last = job.session.key
        shape = job.step.hidden.shape
    else:
        first, last, shape = job.request.first, job.request.last, job.request.hidden.shape
    num_tokens = shape[0] * shape[1]
    return (last - first) * max(1.0 / config.blocks_per_second, num_tokens / config.forward_tokens_per_second)
