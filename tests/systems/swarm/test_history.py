"""The session's log against a model that keeps, for every row, the positions it would see: random logs, all boundaries.

A position is known by one number, unlike all others, so a replay is right only if it has the very positions in order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farflung.systems.swarm import history as history_module
from farflung.systems.swarm.history import History
from farflung.systems.swarm.messages import Edit, Reorder, Truncate

BOUNDARIES = (0, 2, 3)


@dataclass
class Log:
    """A history, and what its cache holds: per row, the numbers of its positions."""

    history: History = field(default_factory=History)
    rows: list[list[int]] = field(default_factory=list[list[int]])
    padding: list[list[int]] = field(default_factory=list[list[int]])
    next_number: int = 1
    past: list[list[list[int]]] = field(default_factory=lambda: [[]])
    """The rows after each step."""

    @property
    def length(self) -> int:
        return len(self.rows[0]) if self.rows else 0

    def add(self, edits: list[Edit], num_rows: int, num_positions: int) -> None:
        """A step: edits of what is held, then new positions (the first one of every second row is padding)."""
        self.rows, self.padding = _edited(self.rows, edits), _edited(self.padding, edits)
        if not self.rows:
            self.rows, self.padding = [[] for _ in range(num_rows)], [[] for _ in range(num_rows)]
        new = torch.arange(self.next_number, self.next_number + num_rows * num_positions).view(num_rows, -1)
        mask = torch.ones_like(new)
        mask[1::2, 0] = 0
        self.next_number += new.numel()
        for row, numbers in enumerate(new.tolist()):
            self.rows[row] += numbers
            self.padding[row] += mask[row].tolist()
        step = self.history.append(edits, new, mask)
        for block in BOUNDARIES:
            self.history.record(block, step, hidden_of(new, block), is_whole=False)
        self.past.append([list(row) for row in self.rows])

    def check(self) -> None:
        """Everything that can be replayed is what the rows hold."""
        upto = self.history.num_steps
        held = torch.tensor(self.rows)
        assert (self.history.length, self.history.batch_size) == (self.length, len(self.rows))
        for block in BOUNDARIES:
            assert self.history.is_complete(block, upto)
            assert torch.equal(self.history.inputs(block, 0, upto), hidden_of(held, block))
            num_new = self.history.step(upto).num_positions
            assert torch.equal(self.history.inputs(block, upto - 1, upto), hidden_of(held[:, -num_new:], block))
        assert torch.equal(self.history.position_ids(0, upto), held)
        assert torch.equal(self.history.attention_mask(0, upto), torch.tensor(self.padding))
        self.check_from_every_step()

    def check_from_every_step(self) -> None:
        """Whatever an older step left can be brought to the newest one."""
        upto = self.history.num_steps
        for base, rows in enumerate(self.past[:upto]):
            left = _edited(rows, self.history.edits(base, upto))
            new = self.history.position_ids(base, upto)
            assert new.shape[1] == self.history.num_new(base, upto)
            assert [[*row, *numbers] for row, numbers in zip(left or [[]] * len(new), new.tolist(), strict=True)] == (
                self.rows
            )
            for block in BOUNDARIES:
                assert self.history.is_complete(block, upto, base)
                assert torch.equal(self.history.inputs(block, base, upto), hidden_of(new, block))


def _edited(rows: list[list[int]], edits: Sequence[Edit]) -> list[list[int]]:
    for edit in edits:
        rows = (
            [row[: edit.length] for row in rows] if isinstance(edit, Truncate) else [list(rows[n]) for n in edit.rows]
        )
    return rows if rows and rows[0] else []


def hidden_of(numbers: torch.Tensor, block: int) -> torch.Tensor:
    """Two-wide hidden states from which position and boundary can be read."""
    return torch.stack([numbers, numbers * 10 + block], dim=-1)


@st.composite
def logs(draw: Callable[..., object]) -> list[tuple[list[Edit], int, int]]:
    """Legal logs: rows exist when they are named, truncations do not lengthen."""
    steps: list[tuple[list[Edit], int, int]] = []
    length = num_rows = 0
    for _ in range(_draw(draw, 1, 12)):
        edits: list[Edit] = []
        for _ in range(_draw(draw, 0, 3) if length else 0):
            if _draw(draw, 0, 1):
                rows = tuple(_draw(draw, 0, num_rows - 1) for _ in range(_draw(draw, 1, 4)))
                edits.append(Reorder(rows))
                num_rows = len(rows)
            else:
                length = _draw(draw, 0, length)
                edits.append(Truncate(length))
        if not length:
            num_rows = _draw(draw, 1, 4)
        num_positions = _draw(draw, 1, 4)
        length += num_positions
        steps.append((edits, num_rows, num_positions))
    return steps


def _draw(draw: Callable[..., object], low: int, high: int) -> int:
    number = draw(st.integers(low, high))
    assert isinstance(number, int)
    return number


@given(logs())
def test_a_replay_is_what_the_cache_held(steps: list[tuple[list[Edit], int, int]]) -> None:
    log = Log()
    for edits, num_rows, num_positions in steps:
        log.add(edits, num_rows, num_positions)
        log.check()


@given(logs(), st.integers(1, 3))
def test_compaction_changes_nothing(steps: list[tuple[list[Edit], int, int]], every: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history_module, "COMPACT_EVERY_NUM_STEPS", every)
        log = Log()
        for edits, num_rows, num_positions in steps:
            log.add(edits, num_rows, num_positions)
            log.history.compact_if_worthwhile()
            log.check()


@given(logs(), st.data())
def test_a_whole_output_replaces_what_was_known(steps: list[tuple[list[Edit], int, int]], data: st.DataObject) -> None:
    """A span that was started afresh sends all its positions; steps that it never sent are then missed no more."""
    log = Log()
    fresh_at = data.draw(st.integers(1, len(steps)))
    for number, (edits, num_rows, num_positions) in enumerate(steps, start=1):
        log.add(edits, num_rows, num_positions)
        if number == fresh_at:
            log.history.forget([2])
            assert not log.history.is_complete(2, number) and not log.history.has(2, number)
            log.history.record(2, number, hidden_of(torch.tensor(log.rows), 2), is_whole=True)
    log.check()


def test_what_never_arrived_is_missed() -> None:
    log = Log()
    for _ in range(3):
        log.add([], 1, 2)
    history = log.history
    history.forget([2])
    history.record(2, 1, torch.zeros(1, 2, 2), is_whole=False)
    history.record(2, 3, torch.zeros(1, 2, 2), is_whole=False)
    assert history.has(2, 3) and not history.has(2, 2)
    assert history.is_complete(2, 1) and not history.is_complete(2, 3)
    history.record(2, 2, torch.zeros(1, 2, 2), is_whole=False)
    assert history.is_complete(2, 3)


def test_a_late_copy_does_not_replace_what_is_here() -> None:
    log = Log()
    log.add([], 1, 2)
    log.add([], 1, 1)
    log.history.record(2, 1, torch.full((1, 2, 2), 99), is_whole=False)
    log.check()
    log.history.record(2, 2, hidden_of(torch.tensor(log.rows), 2), is_whole=True)
    log.history.record(2, 1, torch.full((1, 2, 2), 99), is_whole=True)
    log.check()


def test_a_boundary_that_is_not_complete_survives_compaction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "COMPACT_EVERY_NUM_STEPS", 1)
    log = Log()
    log.add([], 1, 3)
    log.history.forget([2])
    log.add([Truncate(2)], 1, 1)
    log.add([Truncate(1)], 1, 1)
    log.history.compact_if_worthwhile()
    assert not log.history.is_complete(2, 3)
    log.history.record(2, 1, hidden_of(torch.tensor([[1, 2, 3]]), 2), is_whole=False)
    log.check()


@pytest.mark.parametrize(
    ("num_positions", "sizes"), [(1, [1]), (4, [4]), (7, [7]), (8, [4, 4]), (11, [4, 7]), (13, [4, 4, 5])]
)
def test_a_long_prompt_is_cut_and_no_piece_is_small(num_positions: int, sizes: list[int]) -> None:
    history = History()
    hidden_BTH = torch.arange(2.0 * num_positions).reshape(2, num_positions, 1)
    ids = torch.arange(num_positions).expand(2, num_positions)
    edits = (Truncate(0),)
    assert history.extend(edits, hidden_BTH, (ids, torch.ones_like(ids)), num_each=4) == range(1, len(sizes) + 1)
    assert [history.step(number).num_positions for number in range(1, len(sizes) + 1)] == sizes
    assert [history.step(number).edits for number in range(1, len(sizes) + 1)] == [edits] + [()] * (len(sizes) - 1)
    assert history.inputs(0, 0, len(sizes)).equal(hidden_BTH)
    assert history.position_ids(0, len(sizes)).equal(ids)
