"""The sessions of one block server: their caches, what each has applied, and how many tokens are promised."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from farflung.model.cache import SpanCache
from farflung.model.span import Span
from farflung.systems.swarm.messages import Edit, Output, Step, Truncate
from farflung.wire.tensor import WireTensor, decode_tensor, encode_tensor
from farflung.world.address import Address, PeerId

SessionKey = tuple[str, int, int]
"""(session, first block, last block): one session may hold several spans of one server."""


@dataclass(slots=True)
class ServerSession:
    """The part of a session that one span of a server holds. The compute thread owns `cache`, `mask` and `prompts`."""

    key: SessionKey
    client: Address
    span: Span
    num_tokens_reserved: int
    cache: SpanCache
    mask: torch.Tensor | None = None
    """[batch, length] of the attention mask as far as the cache goes; None: no padding so far."""
    prompts: torch.Tensor | None = None
    length: int = 0
    """Positions in the cache once everything accepted is computed."""
    batch_size: int = 0
    """Rows, likewise."""
    applied: int = 0
    """The newest step computed."""
    enqueued: int = 0
    """The newest step accepted."""
    newest_base: int = 0
    """The base of that step."""
    newest_output: Output | None = None
    """Kept to answer duplicates."""
    next_peer: PeerId | None = None
    """Where its outputs are pushed to."""
    used_at: float = 0.0
    is_closed: bool = False


@dataclass(slots=True)
class SessionTable:
    """All sessions of a server, bounded in tokens; a token on k of n blocks counts k/n."""

    num_tokens_max: int
    num_blocks: int
    _sessions: dict[SessionKey, ServerSession] = field(default_factory=dict[SessionKey, ServerSession])
    _num_block_tokens: int = 0

    def __iter__(self) -> Iterator[ServerSession]:
        return iter(list(self._sessions.values()))

    def __len__(self) -> int:
        return len({session for session, _, _ in self._sessions})

    @property
    def num_tokens_left(self) -> int:
        """Tokens, over all blocks of the server, that are not promised yet."""
        return max(0, self.num_tokens_max - -(-self._num_block_tokens // self.num_blocks))

    def get(self, key: SessionKey) -> ServerSession | None:
        return self._sessions.get(key)

    def fits(self, num_tokens: int, num_blocks: int) -> bool:
        """Whether a session of `num_tokens` on `num_blocks` blocks can be taken."""
        return self._num_block_tokens + num_tokens * num_blocks <= self.num_tokens_max * self.num_blocks

    def open(self, session: ServerSession) -> None:
        """Add a session; its tokens are set aside."""
        assert session.key not in self._sessions
        self._sessions[session.key] = session
        self._num_block_tokens += session.num_tokens_reserved * _num_blocks(session.key)

    def grow(self, session: ServerSession, num_tokens: int) -> bool:
        """Set aside more for a session; False if there is no room."""
        num_blocks = _num_blocks(session.key)
        more = num_tokens - session.num_tokens_reserved
        if more > 0 and not self.fits(more, num_blocks):
            return False
        session.num_tokens_reserved += max(0, more)
        self._num_block_tokens += max(0, more) * num_blocks
        return True

    def close(self, key: SessionKey) -> None:
        """Free a session."""
        session = self._sessions.pop(key, None)
        if session is not None:
            session.is_closed = True
            self._num_block_tokens -= session.num_tokens_reserved * _num_blocks(key)

    def close_where(
        self, *, session: str | None = None, client: Address | None = None, client_peer: PeerId | None = None
    ) -> int:
        """Free all parts of a session, or all sessions of a client or of whatever runs on a peer; how many parts."""
        keys = [
            key
            for key, held in self._sessions.items()
            if session in (None, key[0]) and client in (None, held.client) and client_peer in (None, held.client.peer)
        ]
        for key in keys:
            self.close(key)
        return len(keys)


def _num_blocks(key: SessionKey) -> int:
    return key[2] - key[1]


def apply_step(session: ServerSession, step: Step, num_bytes_max: int) -> WireTensor:
    """Edit the cache, then run the span on the new positions. Runs on the compute thread.

    Returns hidden states [batch, new positions, hidden size] after the span, encoded as the step asks for.
    """
    hidden = decode_tensor(step.hidden, num_bytes_max=num_bytes_max)
    new_mask = decode_tensor(step.attention_mask) if step.attention_mask is not None else None
    position_ids = decode_tensor(step.position_ids) if step.position_ids is not None else None
    if step.prompts is not None:
        _, first, last = session.key
        session.prompts = decode_tensor(step.prompts, num_bytes_max=num_bytes_max)[first:last]
    for edit in step.edits:
        _edit(session, edit)
    batch_size, num_new, _ = hidden.shape
    session.mask = _extend_mask(session.mask, new_mask, batch_size, session.cache.length, num_new)
    _, first, last = session.key
    output = session.span.forward(
        hidden,
        session.cache,
        position_ids_BT=position_ids,
        attention_mask_BS=session.mask,
        first=first,
        last=last,
        prompts_LPH=session.prompts,
    )
    return encode_tensor(output, step.codec)


def make_output(session: ServerSession, step: Step, hidden: WireTensor, seconds: tuple[float, float]) -> Output:
    """The answer to a step; `seconds` are (compute, queue)."""
    name, first, last = session.key
    return Output(
        session=name,
        first=first,
        last=last,
        base=step.base,
        upto=step.upto,
        hidden=hidden,
        compute_seconds=seconds[0],
        queue_seconds=seconds[1],
    )


def _edit(session: ServerSession, edit: Edit) -> None:
    if isinstance(edit, Truncate):
        session.cache.truncate(edit.length)
        if session.mask is not None:
            session.mask = session.mask[:, : edit.length]
        return
    rows = torch.tensor(edit.rows)
    session.cache.reorder(rows)
    if session.mask is not None:
        session.mask = session.mask[rows]


def _extend_mask(
    mask: torch.Tensor | None, new: torch.Tensor | None, batch_size: int, length: int, num_new: int
) -> torch.Tensor | None:
    """[batch, length + new]; None as long as nothing was ever padded."""
    if mask is None and new is None:
        return None
    past = mask if mask is not None and length else torch.ones(batch_size, length, dtype=torch.int64)
    fresh = new if new is not None else torch.ones(batch_size, num_new, dtype=torch.int64)
    return torch.cat([past, fresh.to(past.dtype)], dim=1)
