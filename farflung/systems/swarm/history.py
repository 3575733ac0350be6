"""The operation log of a session: what has been asked of every span, so that any span can be rebuilt exactly elsewhere.

A step is a list of edits (truncate, reorder) and then new positions. Edits, position ids and masks are the same for all
spans; hidden states differ, so they are kept per *boundary*: boundary b holds the inputs of block b. `replay` compacts
the log: it follows each surviving row back through every reorder and drops what was truncated, so that one prefill of
its result leaves a fresh server in the very state that the step-by-step history left the lost one in (PETALS,
Algorithm 1, with the operations that its published code forgets).
"""

from collections.abc import Sequence
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


@dataclass(slots=True)
class _Boundary:
    """One tensor stream along the log: [batch, positions, ...] per step, on top of a compacted snapshot."""

    snapshot_step: int = 0
    snapshot: torch.Tensor | None = None
    steps: dict[int, torch.Tensor] = field(default_factory=dict[int, torch.Tensor])

    def first_missing(self, upto: int) -> int | None:
        """The first step after the snapshot, up to `upto`, whose tensor never arrived."""
        return next((step for step in range(self.snapshot_step + 1, upto + 1) if step not in self.steps), None)


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

    def newest(self, block: int, step: int) -> torch.Tensor:
        """What enters `block` at `step`, new positions only; `has` must hold."""
        boundary = self._boundaries[block]
        if step in boundary.steps:
            return boundary.steps[step]
        assert boundary.snapshot is not None and boundary.snapshot_step == step
        return boundary.snapshot[:, -self.step(step).num_positions :]

    def is_complete(self, block: int, upto: int) -> bool:
        """Whether a span that starts at `block` can be rebuilt up to step `upto` from here."""
        boundary = self._boundaries.get(block)
        return boundary is not None and boundary.snapshot_step <= upto and boundary.first_missing(upto) is None

    def replay(self, block: int, upto: int) -> torch.Tensor:
        """All inputs of `block` that are still in the cache at step `upto`: [batch, length, hidden size]."""
        return self._compact(self._boundaries[block], upto)

    def replay_position_ids(self, upto: int) -> torch.Tensor:
        """Position ids that go with `replay`: [batch, length]."""
        return self._compact(self._position_ids, upto)

    def replay_attention_mask(self, upto: int) -> torch.Tensor:
        """Attention mask that goes with `replay`: [batch, length]."""
        return self._compact(self._attention_mask, upto)

    def newest_position_ids(self, step: int) -> torch.Tensor:
        """Position ids of the new positions of `step`: [batch, new positions]."""
        return self._position_ids.steps[step]

    def newest_attention_mask(self, step: int) -> torch.Tensor:
        """Attention mask of the new positions of `step`: [batch, new positions]."""
        return self._attention_mask.steps[step]

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
                boundary.snapshot = self._compact(boundary, upto)
                boundary.snapshot_step = upto
                boundary.steps = {step: tensor for step, tensor in boundary.steps.items() if step > upto}

    def _compact(self, boundary: _Boundary, upto: int) -> torch.Tensor:
        """Walk the log backwards: `rows` maps the rows of the end to rows of the step at hand, `limit` is the length
        below which positions survive all later truncations."""
        rows: torch.Tensor | None = None
        limit = self.step(upto).start + self.step(upto).num_positions
        pieces: list[torch.Tensor] = []
        for number in range(upto, boundary.snapshot_step, -1):
            step = self.step(number)
            pieces.append(_pick(boundary.steps[number], rows, limit - step.start))
            limit = min(limit, step.start)  # where a step starts says what its truncations left
            if limit == 0:
                break  # nothing older is left, and its batch may have had another size
            rows = _rows_before(step.edits, rows)
        if boundary.snapshot is not None and limit > 0:
            pieces.append(_pick(boundary.snapshot, rows, limit))
        return torch.cat(pieces[::-1], dim=1)


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
