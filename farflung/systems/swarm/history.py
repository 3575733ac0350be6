"""The operation log of a session: what has been asked of every span, so that any span can be rebuilt exactly elsewhere.

A step is a list of edits (truncate, reorder) and then new positions. Edits, position ids and masks are the same for all
spans; hidden states differ, so they are kept per *boundary*: boundary b holds the inputs of block b. `inputs` compacts
the log: it follows each surviving row back through every reorder and drops what was truncated, so that one prefill of
its result leaves a fresh server, or one that stands at an older step and was given `edits`, in the very state that the
step-by-step history left the lost one in (PETALS, Algorithm 1, with the operations that its published code forgets).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from farflung.systems.swarm.messages import Edit, Reorder, Truncate

COMPACT_EVERY_NUM_STEPS = 64
"""How many steps with edits may pile up before the log drops what they made unreachable."""


@dataclass(frozen=True, slots=True)
class LoggedStep:
    """One step, without its hidden states."""

    edits: tuple[Edit, ...]
    start: int
    """Cache length after the edits, where the new positions go."""
    num_positions: int
    batch_size: int


def pieces(num_positions: int, num_each: int) -> Iterator[slice]:
    """Cut positions into pieces of so many, none of them smaller: what is left over goes with the last, for a small
    message may overtake a large one."""
    last = max(1, num_positions // num_each) - 1
    for number in range(last + 1):
        yield slice(number * num_each, (number + 1) * num_each if number < last else num_positions)


@dataclass(slots=True)
class _Boundary:
    """One tensor stream along the log: [batch, positions, ...] per step, on top of a compacted snapshot."""

    snapshot_step: int = 0
    snapshot: torch.Tensor | None = None
    steps: dict[int, torch.Tensor] = field(default_factory=dict[int, torch.Tensor])

    def first_missing(self, upto: int, base: int = 0) -> int | None:
        """The first step after the snapshot and `base`, up to `upto`, whose tensor never arrived."""
        first = max(self.snapshot_step, base) + 1
        return next((step for step in range(first, upto + 1) if step not in self.steps), None)


class History:
    """The log of one session."""

    def __init__(self) -> None:
        self._log: list[LoggedStep] = []
        self._boundaries: dict[int, _Boundary] = {}
        self._position_ids = _Boundary()
        self._attention_mask = _Boundary()
        self._num_edited_steps = 0

    @property
    def num_steps(self) -> int:
        """The number of the newest step; steps count from 1."""
        return len(self._log)

    @property
    def length(self) -> int:
        """Cache length after the newest step."""
        return self._log[-1].start + self._log[-1].num_positions if self._log else 0

    @property
    def batch_size(self) -> int | None:
        """Batch size after the newest step; None before the first."""
        return self._log[-1].batch_size if self._log else None

    def step(self, number: int) -> LoggedStep:
        """Step `number`, counted from 1."""
        return self._log[number - 1]

    def append(self, edits: Sequence[Edit], position_ids: torch.Tensor, attention_mask: torch.Tensor) -> int:
        """Log a step of new positions with `position_ids` and `attention_mask` [batch, new positions]; its number."""
        length = self.length
        for edit in edits:
            if isinstance(edit, Truncate):
                length = min(length, edit.length)
        batch_size, num_positions = position_ids.shape
        self._log.append(LoggedStep(tuple(edits), length, num_positions, batch_size))
        self._position_ids.steps[self.num_steps] = position_ids
        self._attention_mask.steps[self.num_steps] = attention_mask
        self._num_edited_steps += bool(edits)
        return self.num_steps

    def extend(
        self,
        edits: Sequence[Edit],
        hidden_BTH: torch.Tensor,
        places: tuple[torch.Tensor, torch.Tensor],
        num_each: int,
    ) -> range:
        """Log new positions, with their position ids and attention mask [batch, positions], in steps of so many of
        them (`pieces`), and keep `hidden_BTH` as what enters the first block; the numbers of the steps."""
        first = self.num_steps + 1
        position_ids, attention_mask = places
        for piece in pieces(hidden_BTH.shape[1], num_each):
            number = self.append(edits, position_ids[:, piece], attention_mask[:, piece])
            self.record(0, number, hidden_BTH[:, piece], is_whole=False)
            edits = ()
        return range(first, self.num_steps + 1)

    def record(self, block: int, step: int, hidden: torch.Tensor, *, is_whole: bool) -> None:
        """Keep what enters `block` at `step`: [batch, new positions, hidden size], or, if `is_whole` (from a span that
        started afresh), the compacted history up to that step, which replaces all that was known of this boundary."""
        boundary = self._boundaries.setdefault(block, _Boundary())
        if step <= boundary.snapshot_step:
            return
        if not is_whole:
            boundary.steps.setdefault(step, hidden)
            return
        boundary.snapshot, boundary.snapshot_step = hidden, step
        boundary.steps = {number: tensor for number, tensor in boundary.steps.items() if number > step}

    def has(self, block: int, step: int) -> bool:
        """Whether the newest positions that enter `block` at `step` are here."""
        boundary = self._boundaries.get(block)
        return boundary is not None and (step in boundary.steps or (boundary.snapshot_step == step and step > 0))

    def is_complete(self, block: int, upto: int, base: int = 0) -> bool:
        """Whether a span that starts at `block` and stands at step `base` can be brought to step `upto` from here."""
        boundary = self._boundaries.get(block)
        return boundary is not None and boundary.snapshot_step <= upto and boundary.first_missing(upto, base) is None

    def edits(self, base: int, upto: int) -> tuple[Edit, ...]:
        """What makes of the cache at step `base` all that is left of it at step `upto`: a truncation, then a reorder,
        or less."""
        rows, num_kept = self._left_of(base, upto)
        edits: list[Edit] = [] if num_kept == self._length_at(base) else [Truncate(num_kept)]
        return tuple(edits) if rows is None else (*edits, Reorder(tuple(int(row) for row in rows)))

    def num_new(self, base: int, upto: int) -> int:
        """Positions of the cache at step `upto` that one at step `base` lacks."""
        return self._length_at(upto) - self._left_of(base, upto)[1]

    def inputs(self, block: int, base: int, upto: int) -> torch.Tensor:
        """Inputs of `block` at the positions that `num_new` counts: [batch, new positions, hidden size]. All that are
        in the cache at step `upto` for base 0; `is_complete` must hold."""
        return self._compact(self._boundaries[block], base, upto)

    def position_ids(self, base: int, upto: int) -> torch.Tensor:
        """Position ids that go with `inputs`: [batch, new positions]."""
        return self._compact(self._position_ids, base, upto)

    def attention_mask(self, base: int, upto: int) -> torch.Tensor:
        """Attention mask that goes with `inputs`: [batch, new positions]."""
        return self._compact(self._attention_mask, base, upto)

    def forget(self, blocks: Sequence[int]) -> None:
        """Drop boundaries that no span starts at any more."""
        for block in blocks:
            self._boundaries.pop(block, None)

    def compact_if_worthwhile(self) -> None:
        """Drop hidden states that edits made unreachable, once enough steps had edits."""
        if self._num_edited_steps < COMPACT_EVERY_NUM_STEPS:
            return
        self._num_edited_steps = 0
        upto = self.num_steps - 1  # the newest step stays open: copies of it may still be under way
        for boundary in [*self._boundaries.values(), self._position_ids, self._attention_mask]:
            if upto > boundary.snapshot_step and boundary.first_missing(upto) is None:
                boundary.snapshot = self._compact(boundary, 0, upto)
                boundary.snapshot_step = upto
                boundary.steps = {step: tensor for step, tensor in boundary.steps.items() if step > upto}

    def _length_at(self, number: int) -> int:
        """Cache length after step `number`; 0 before the first."""
        return self.step(number).start + self.step(number).num_positions if number else 0

    def _left_of(self, base: int, upto: int) -> tuple[torch.Tensor | None, int]:
        """What is left of the cache at step `base` at step `upto`: (its rows, None if all are as they were; how many
        of its positions)."""
        rows: torch.Tensor | None = None
        num_kept = self._length_at(upto) if base else 0
        for number in range(upto, base, -1):
            step = self.step(number)
            num_kept = min(num_kept, step.start)
            if num_kept == 0:
                return None, 0
            rows = _rows_before(step.edits, rows)
        return rows, num_kept

    def _compact(self, boundary: _Boundary, base: int, upto: int) -> torch.Tensor:
        """Walk the log backwards: `rows` maps the rows of the end to rows of the step at hand, `limit` is the length
        below which positions survive all later truncations."""
        rows: torch.Tensor | None = None
        limit = self._length_at(upto)
        first = limit - self.num_new(base, upto)
        pieces: list[torch.Tensor] = []
        for number in range(upto, boundary.snapshot_step, -1):
            step = self.step(number)
            pieces.append(_pick(boundary.steps[number], rows, limit - step.start))
            limit = min(limit, step.start)  # where a step starts says what its truncations left
            if limit <= first:
                break  # nothing older is new, and if nothing older is left, its batch may have had another size
            rows = _rows_before(step.edits, rows)
        if boundary.snapshot is not None and limit > first:
            pieces.append(_pick(boundary.snapshot, rows, limit))
            limit = 0
        return torch.cat(pieces[::-1], dim=1)[:, first - limit :]


def _pick(tensor: torch.Tensor, rows: torch.Tensor | None, num_positions: int) -> torch.Tensor:
    kept = tensor[:, : max(0, num_positions)]
    return kept if rows is None else kept.index_select(0, rows)


def _rows_before(edits: Sequence[Edit], rows: torch.Tensor | None) -> torch.Tensor | None:
    """The rows, before the edits, that `rows` were after them."""
    for edit in reversed(edits):
        if isinstance(edit, Reorder):
            source = torch.tensor(edit.rows)
            rows = source if rows is None else source[rows]
    return rows
