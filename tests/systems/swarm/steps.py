"""Steps, limits and a server of a small model, as the tests of this folder put them together."""

from collections.abc import Sequence
from typing import Any

import torch

from farflung.model.span import Span
from farflung.systems.swarm.checks import Limits
from farflung.systems.swarm.config import ServerConfig
from farflung.systems.swarm.messages import ACTOR, Hop, Step
from farflung.systems.swarm.server import Server
from farflung.wire.tensor import WireTensor, encode_tensor
from farflung.world.address import Address, PeerId
from farflung.world.doors import Failed
from farflung.world.effects import Effect, Run, Send

HIDDEN_SIZE = 32
SERVER, NEXT = PeerId("server"), PeerId("next")
CLIENT = Address(PeerId("client"), "session-1")
LIMITS = Limits(hidden_size=HIDDEN_SIZE, context_length_max=512)
MODEL = "fingerprint"


def hidden(num_rows: int = 1, num_positions: int = 1, seed: int = 0) -> torch.Tensor:
    """Random hidden states."""
    return torch.randn(num_rows, num_positions, HIDDEN_SIZE, generator=torch.Generator().manual_seed(seed))


def wire(*shape: int, dtype: torch.dtype = torch.float32) -> WireTensor:
    """Zeros of a shape and type."""
    return encode_tensor(torch.zeros(shape, dtype=dtype))


def step(base: int, upto: int, **fields: Any) -> Step:
    """A step of one position through blocks 0:2 of SERVER, unless `fields` say otherwise."""
    known: dict[str, Any] = {
        "session": "one",
        "model": MODEL,
        "route": (Hop(SERVER, 0, 2),),
        "client": CLIENT,
        "hidden": encode_tensor(hidden(seed=upto)),
        "num_tokens_max": 64,
    }
    return Step(base=base, upto=upto, **{**known, **fields})


def server(span: Span, *, cache_tokens_max: int = 1000, num_jobs_max: int = 100, **fields: Any) -> Server:
    """A block server of `span`."""
    config = ServerConfig(
        model=MODEL,
        model_name="small",
        limits=LIMITS,
        cache_tokens_max=cache_tokens_max,
        blocks_per_second=1000.0,
        forward_tokens_per_second=1000.0,
        version="test",
        started_at=0.0,
        num_jobs_max=num_jobs_max,
        **fields,
    )
    return Server(config, span)


class Bench:
    """A server on a workbench: messages go in by hand, computations end when told."""

    def __init__(self, role: Server) -> None:
        self.role = role
        self.now = 0.0
        self.running: list[Run] = []
        self.sent: list[tuple[Address, Any]] = []

    def receive(self, message: object, source: Address = CLIENT) -> list[Any]:
        """Hand over a message; the messages it sends at once."""
        return self.take(self.role.receive(source, message, self.now))

    def take(self, effects: Sequence[Effect]) -> list[Any]:
        """Note effects; the messages among them."""
        self.running += [effect for effect in effects if isinstance(effect, Run)]
        sent = [(effect.destination, effect.message) for effect in effects if isinstance(effect, Send)]
        self.sent += sent
        return [message for _, message in sent]

    def compute(self, *, error: Exception | None = None) -> list[Any]:
        """Let the running computation end (in `error`, if given); the messages that come of it."""
        job = self.running.pop(0)
        try:
            result = Failed(error) if error is not None else job.function(*job.arguments)
        except Exception as raised:  # noqa: BLE001  as the compute door does
            result = Failed(raised)
        return self.take(self.role.finished(job.job, result, self.now))

    def apply(self, message: Step) -> list[Any]:
        """Hand over a step and let it be computed."""
        sent = self.receive(message)
        return sent + (self.compute() if self.running else [])

    @property
    def num_tokens_left(self) -> int:
        return self.role.info({}).cache_tokens_left


NEXT_ACTOR = Address(NEXT, ACTOR)
