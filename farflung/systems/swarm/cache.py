"""The attention cache that transformers sees on the client: a handle on a session whose contents are elsewhere."""

import weakref
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

import torch
from transformers.cache_utils import Cache

from farflung.systems.swarm.session import Session

T = TypeVar("T")


class Bridge(Protocol):
    """How synchronous code (transformers) reaches the event loop that the doors live on."""

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run to the end and return the result; called from outside the loop's thread."""
        ...

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call `function` on the loop soon, without waiting."""
        ...


class RemoteCache(Cache):
    """Cropping and reordering are noted in the session's log and travel with its next step; nothing is copied here.

    The servers' caches are freed by `close`, or when the last reference to this object goes.
    """

    def __init__(self, session: Session, bridge: Bridge) -> None:
        super().__init__(layers=[])
        self.session = session
        self._bridge = bridge
        self._finalizer = weakref.finalize(self, bridge.call_soon, session.close)
        self._finalizer.atexit = False
        self._batch_size = 0

    def close(self) -> None:
        """Free the caches of all servers. May be called twice."""
        self._finalizer()

    def step(
        self, hidden_BTH: torch.Tensor, position_ids_BT: torch.Tensor | None, attention_mask_BS: torch.Tensor | None
    ) -> torch.Tensor:
        """Pass new positions through all blocks; [batch, new positions, hidden size]."""
        self._batch_size, num_new, _ = hidden_BTH.shape
        new_mask = attention_mask_BS[:, -num_new:].to(torch.int64) if attention_mask_BS is not None else None
        return self._bridge.run(self.session.step(hidden_BTH, position_ids_BT, new_mask))

    # What transformers asks of a cache.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.session.length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.session.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.session.length + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, given as a negative number."""
        self.session.truncate(self.session.length - abs(tokens_to_remove))

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.session.reorder(beam_idx.tolist())
        self._batch_size = len(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.reorder_cache(torch.arange(self._batch_size)[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.reorder_cache(torch.arange(self._batch_size).repeat_interleave(repeats))

    def activate_past_recording(self) -> None:
        """Nothing to do: every token is always kept."""

    def reset(self) -> None:
        self.session.truncate(0)

    def __len__(self) -> int:
        return 1

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_initialized(self) -> bool:
        return self.session.length > 0

    @property
    def is_sliding(self) -> list[bool]:
        return [False]

    @property
    def is_croppable(self) -> bool:
        return True
