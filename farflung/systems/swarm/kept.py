"""Forward passes whose gradients will be asked for: what autograd has saved of them stays for a while, within bounds.

A server may forget any of them at any time: Backward brings all that is needed to compute the pass again, which is
gradient checkpointing at span level. What is kept saves that, and gives the same bits.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from farflung.model.lowrank import Additions
from farflung.model.span import Span
from farflung.systems.swarm.messages import Backward, Forward
from farflung.world.address import PeerId


@dataclass(frozen=True, slots=True, eq=False)
class KeptPass:
    """A span's output with its graph, and what gradients are taken by."""

    output: torch.Tensor
    hidden: torch.Tensor
    prompts: torch.Tensor | None
    trained: Additions | None
    """An adapter's factors, if gradients by them are wanted."""
    num_bytes: int = 0
    """That its graph holds beside the weights."""


@dataclass(frozen=True, slots=True)
class _Entry:
    peer: PeerId
    request: Forward
    kept: KeptPass
    added_at: float

    def is_for(self, peer: PeerId, request: Backward) -> bool:
        """Whether gradients that this peer asks for are of this pass."""
        own = self.request
        alike = ("model", "first", "last", "adapter", "wants_factors_gradient")
        return (
            peer == self.peer
            and all(getattr(own, name) == getattr(request, name) for name in alike)
            and own.hidden.shape == request.hidden.shape
        )


class KeptPasses:
    """The newest ones, by the names of their requests."""

    def __init__(self, num_bytes_max: int, seconds_max: float) -> None:
        self._num_bytes_max = num_bytes_max
        self._seconds_max = seconds_max
        self._entries: dict[str, _Entry] = {}
        self.num_bytes = 0
        """Of all."""

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, peer: PeerId, request: Forward, kept: KeptPass, now: float) -> None:
        """Keep one; the oldest ones make room for it, or it is let go."""
        if kept.num_bytes > self._num_bytes_max:
            return
        self._drop(request.request)
        self._entries[request.request] = _Entry(peer, request, kept, now)
        self.num_bytes += kept.num_bytes
        while self.num_bytes > self._num_bytes_max:
            self._drop(next(iter(self._entries)))

    def take(self, peer: PeerId, request: Backward) -> KeptPass | None:
        """The pass that these gradients are of, once; None: it is not here, or it is another one."""
        entry = self._entries.get(request.forward)
        if entry is None or not entry.is_for(peer, request):
            return None
        self._drop(request.forward)
        return entry.kept

    def drop_old(self, now: float) -> None:
        """Let go of those that nobody seems to come back for."""
        for name in [name for name, entry in self._entries.items() if now - entry.added_at > self._seconds_max]:
            self._drop(name)

    def _drop(self, name: str) -> None:
        entry = self._entries.pop(name, None)
        if entry is not None:
            self.num_bytes -= entry.kept.num_bytes


@contextmanager
def counting_saved_bytes(span: Span) -> Generator[dict[int, int]]:
    """Bytes of what autograd saves within the block, by where they lie; the span's weights are there anyway."""
    weights = {weight.untyped_storage().data_ptr() for layer in span.layers for weight in layer.parameters()}
    found: dict[int, int] = {}

    def pack(saved: torch.Tensor) -> torch.Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        yield found
