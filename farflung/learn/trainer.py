"""A worker's own training: gradients of a language model over micro-batches, and steps along them.

`run` is what a compute door is asked for: many steps without a word to anyone. Whoever must speak between a gradient
and its step (a group that averages gradients) uses `compute_gradients` and `apply`, of which `run` is made.
"""

import hashlib
import math
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from farflung.learn import loss
from farflung.learn.checkpoint import require_fit
from farflung.learn.optimizer import NamedOptimizer
from farflung.learn.parameters import Tensors, assign_, joined
from farflung.learn.schedule import Schedule
from farflung.learn.state import State

PARAMETERS = "parameters"
"""Name of the group of parameters in a state, beside the moments' own."""


class Stream(Protocol):
    """Where training batches come from."""

    @property
    def cursor(self) -> dict[str, int]:
        """How far it is."""
        ...

    def seek(self, cursor: Mapping[str, int]) -> None:
        """Go on from a cursor."""
        ...

    def next_batch(self) -> torch.Tensor:
        """Tokens, int64 [batch, sequence + 1]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Descended:
    """What some steps came to."""

    loss: float
    """Mean of the steps taken, nats per token; NaN if none was."""
    num_steps: int
    num_tokens: int
    gradient_norm: float
    """Mean of the steps taken, before clipping; NaN if none was."""
    num_skipped: int
    """Steps left out because their gradient was not finite."""


class Trainer:
    """Trains one Hugging Face causal language model on one stream, on the device that the model is on."""

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: NamedOptimizer,
        stream: Stream,
        schedule: Schedule,
        num_micro_batches: int = 1,
        *,
        seed: str = "",
        autocast: torch.dtype | None = None,
    ) -> None:
        """Train `model`; a step's gradient is the mean over `num_micro_batches` batches of the stream.

        Args:
            seed: decides dropout, together with the number of the step; give every worker its own.
            autocast: compute in this dtype (bfloat16 on CUDA) while parameters and moments keep theirs.
        """
        if num_micro_batches < 1:
            raise ValueError(f"a step needs at least 1 micro-batch, not {num_micro_batches}")
        self.model = model.train()
        self.optimizer = optimizer
        self.stream = stream
        self.schedule = schedule
        self.num_micro_batches = num_micro_batches
        self.num_steps = 0
        """Gradients computed so far."""
        self.num_tokens = 0
        """Targets seen so far."""
        self._seed = seed
        self._autocast = autocast

    @property
    def parameters(self) -> Tensors:
        """Live."""
        return self.optimizer.parameters

    @property
    def gradients(self) -> Tensors:
        """Live; between `compute_gradients` and `apply`, whoever averages them writes the mean here."""
        return self.optimizer.gradients

    def compute_gradients(self) -> float:
        """Draw a step's batches and leave their mean gradient in every parameter's `grad`; returns their mean loss."""
        total = torch.zeros((), device=loss.device_of(self.model))
        for number in range(self.num_micro_batches):
            batch = self.stream.next_batch()
            with _seeded(f"{self._seed}:{self.num_steps}:{number}:dropout", total.device):
                micro_loss = loss.next_token_loss(self.model, batch, self._autocast) / self.num_micro_batches
            micro_loss.backward()  # pyright: ignore[reportUnknownMemberType]
            total += micro_loss.detach()
            self.num_tokens += batch[:, 1:].numel()
        self.num_steps += 1
        self.optimizer.complete_gradients()
        return float(total)

    def apply(self, factor: float) -> float:
        """Step along `gradients` with `factor` times the learning rate; returns their norm before clipping.

        If the norm is not finite, the step is left out.
        """
        return self.optimizer.step(factor)

    def run(self, num_steps: int, progress_of_step: Callable[[int], float]) -> Descended:
        """Take steps; `progress_of_step(i)` is how far the whole run is at the end of this call's step i, from 0."""
        num_tokens_before = self.num_tokens
        losses: list[float] = []
        norms: list[float] = []
        for number in range(num_steps):
            step_loss = self.compute_gradients()
            norm = self.apply(self.schedule(progress_of_step(number)))
            if math.isfinite(norm):
                losses.append(step_loss)
                norms.append(norm)
        return Descended(
            loss=_mean(losses),
            num_steps=num_steps,
            num_tokens=self.num_tokens - num_tokens_before,
            gradient_norm=_mean(norms),
            num_skipped=num_steps - len(norms),
        )

    def evaluate(self, batches: Iterable[torch.Tensor]) -> float:
        """Mean loss per token over `batches`, with the parameters as they are now."""
        return loss.evaluate(self.model, batches, self._autocast)

    def state(self) -> State:
        """Parameters, optimizer, position in the data and counts: all that the next step depends on."""
        moments, optimizer_values = self.optimizer.state()
        values = {
            "optimizer": optimizer_values,
            "cursor": self.stream.cursor,
            "num_steps": self.num_steps,
            "num_tokens": self.num_tokens,
        }
        return State({**joined({PARAMETERS: self.parameters}), **moments}, values)

    def load(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """Go on from a saved state: the next step is the one that would have followed it.

        Raises:
            ValueError: the state is of another model, optimizer or data; nothing is changed then.
        """
        prefix = f"{PARAMETERS}/"
        parameters = {path.removeprefix(prefix): tensor for path, tensor in tensors.items() if path.startswith(prefix)}
        moments = {path: tensor for path, tensor in tensors.items() if not path.startswith(prefix)}
        require_fit(parameters, self.parameters, "the saved model")
        self.optimizer.check(moments, values["optimizer"])
        self.stream.seek(values["cursor"])
        self.optimizer.load(moments, values["optimizer"])
        assign_(self.parameters, parameters)
        self.num_steps = values["num_steps"]
        self.num_tokens = values["num_tokens"]


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


@contextmanager
def _seeded(purpose: str, device: torch.device) -> Generator[None, None, None]:
    """Dropout inside depends on `purpose` alone, and the device's own random stream does not notice."""
    number = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=7).digest(), "little")
    if device.type != "cpu":
        with torch.random.fork_rng([device], device_type=device.type):  # pyright: ignore[reportUnknownMemberType]
            torch.manual_seed(number)  # pyright: ignore[reportUnknownMemberType]
            yield
        return
    # torch.manual_seed would ask for every kind of device and take as long as a small model's optimizer step.
    stream = torch.default_generator
    before = stream.get_state()
    stream.manual_seed(number)
    try:
        yield
    finally:
        stream.set_state(before)
