"""The arithmetic of a batch, on the compute thread: edit caches, take over known prefixes, run the span, encode.

A step is computed in as many batches as it has chunks; what is there so far lies with its session. A batch may be
computed again after it failed: nothing is applied twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from farflung.model.pages import OutOfPages
from farflung.systems.swarm.batching import Part
from farflung.systems.swarm.messages import Edit, Step, Truncate
from farflung.systems.swarm.sessions import Pending, ServerSession
from farflung.wire.tensor import WireTensor, decode_tensor, encode_tensor


@dataclass(frozen=True, slots=True)
class Progress:
    """So many positions of the step are computed; more are left."""

    num_done: int


@dataclass(frozen=True, slots=True)
class Unanswered:
    """The step is computed, and nobody wants its output."""


@dataclass(frozen=True, slots=True)
class NoRoom:
    """The pool has no pages left for it; nothing was computed."""


Outcome = WireTensor | Unanswered | Progress | NoRoom


@torch.inference_mode()
def run_batch(parts: Sequence[Part], num_bytes_max: int) -> list[Outcome]:
    """What became of each part: the encoded output of its whole step [batch, new positions, hidden size], or how far
    it has come."""
    results: list[Outcome | None] = []
    computing: list[tuple[ServerSession, Pending, torch.Tensor]] = []
    for part in parts:
        session = part.job.session
        pending = _begun(session, part.job.step, num_bytes_max)
        piece = pending.hidden_BTH[:, pending.num_done : pending.num_done + part.num_positions]
        has_room = piece.shape[1] == 0 or _has_room(session, piece)
        results.append(None if has_room else NoRoom())
        if has_room and piece.shape[1]:
            computing.append((session, pending, piece))
    if computing:
        _compute(computing)
    became = [
        result if result is not None else _result(part.job.session) for part, result in zip(parts, results, strict=True)
    ]
    for part, result in zip(parts, became, strict=True):
        if not isinstance(result, Progress | NoRoom):  # only now: where one fails, the others must not begin again
            part.job.session.pending = None
    return became


def _begun(session: ServerSession, step: Step, num_bytes_max: int) -> Pending:
    """The session's step under way: its edits are made and what is known of it is taken over."""
    if session.pending is not None and session.pending.step is step:
        return session.pending
    hidden = decode_tensor(step.hidden, num_bytes_max=num_bytes_max)
    new_mask = decode_tensor(step.attention_mask) if step.attention_mask is not None else None
    position_ids = decode_tensor(step.position_ids) if step.position_ids is not None else None
    if step.prompts is not None:
        _, first, last = session.key
        session.prompts = decode_tensor(step.prompts, num_bytes_max=num_bytes_max)[first:last]
    for edit in step.edits:
        _edit(session, edit)
    batch_size, num_new, _ = hidden.shape
    cache = session.cache
    session.mask = _extend_mask(session.mask, new_mask, batch_size, cache.length, num_new)
    session.pending = pending = Pending(step, hidden, position_ids)
    if not session.is_plain or batch_size > 1:
        cache.forget_prefix()
    else:
        known = cache.adopt(hidden[0], session.adapter)
        if known is not None:
            pending.outputs.append(known.unsqueeze(0))
            pending.num_done = known.shape[0]
    return pending


def _has_room(session: ServerSession, piece: torch.Tensor) -> bool:
    try:
        session.cache.expect(piece.shape[0], piece.shape[1])
    except OutOfPages:
        session.cache.truncate(session.cache.length)  # what it was given so far
        return False
    return True


def _compute(computing: Sequence[tuple[ServerSession, Pending, torch.Tensor]]) -> None:
    leader, pending, piece = computing[0]
    _, first, last = leader.key
    if leader.is_plain and (len(computing) > 1 or (leader.span.can_batch and leader.cache.is_scattered)):
        pieces = [(piece, session.cache) for session, _, piece in computing]
        outputs = leader.span.forward_batch(
            pieces, first=first, last=last, additions=[session.additions for session, _, _ in computing]
        )
    else:
        output = leader.span.forward(
            piece,
            leader.cache,
            position_ids_BT=pending.position_ids_BT,
            attention_mask_BS=leader.mask,
            first=first,
            last=last,
            prompts_LPH=leader.prompts,
            additions=leader.additions,
        )
        outputs = [output]
    for (session, pending, piece), output in zip(computing, outputs, strict=True):
        if not pending.step.is_background:
            pending.outputs.append(output)
        pending.num_done += piece.shape[1]
        session.cache.remember(piece[0], output[0])


def _result(session: ServerSession) -> WireTensor | Unanswered | Progress:
    pending = session.pending
    assert pending is not None
    if pending.num_left:
        return Progress(pending.num_done)
    if pending.step.is_background:
        session.pending = None
        return Unanswered()
    outputs = pending.outputs
    return encode_tensor(outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), pending.step.codec)


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
