"""Shards among workers that come and go: all are dealt, few move, and no sample is drawn twice in an epoch."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farflung.learn.shards import Deal, Shard, ShardLedger, cursor_of, deal_shards, shards_of
from farflung.learn.stream import TokenStream

LENGTH = 3
WEIGHTS = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.1, 10), min_size=1, max_size=8)


@given(st.integers(8, 64), WEIGHTS, WEIGHTS)
def test_all_shards_are_dealt_by_weight_and_only_what_must_moves(
    num_shards: int, before: dict[str, float], after: dict[str, float]
) -> None:
    held = deal_shards(num_shards, before, {})
    dealt = deal_shards(num_shards, after, held)
    assert sorted(index for indices in dealt.values() for index in indices) == list(range(num_shards))
    rest = num_shards - len(after)
    for name, indices in dealt.items():
        share = 1 + rest * after[name] / sum(after.values())
        assert share - 1 < len(indices) < share + 1
        kept = {*indices} & {*held.get(name, ())}
        assert len(kept) == min(len(indices), len(held.get(name, ()))), "nothing moves that could have stayed"
    assert deal_shards(num_shards, after, dealt) == dealt


def test_impossible_deals_are_refused() -> None:
    assert deal_shards(4, {}, {"a": (0, 1)}) == {}
    with pytest.raises(ValueError, match="2 workers cannot share 1 shards"):
        deal_shards(1, {"a": 1, "b": 1}, {})
    with pytest.raises(ValueError, match="must be positive"):
        deal_shards(4, {"a": 1, "b": 0}, {})


@dataclass
class Worker:
    """Draws single samples from the shards it holds, as its leader last said, and reports some time later."""

    stream: TokenStream
    number: int = 0
    given_up: dict[str, int] = field(default_factory=dict[str, int])
    unreported: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """Epoch of the shard and sample, of what was drawn after the last report."""
    on_its_way: tuple[int, dict[str, int], list[tuple[int, int]]] | None = None
    """A report that the leader has not heard yet, and what it tells of."""

    def draw(self, lengths: dict[int, int]) -> None:
        if not self.stream.shards:
            return
        before = shards_of(self.stream.cursor, len(lengths))
        sample = int(self.stream.next_batch()[0, 0]) // LENGTH
        after = shards_of(self.stream.cursor, len(lengths))
        (index,) = (index for index in after if after[index] != before[index])
        assert sample % len(lengths) == index
        self.unreported.append((before[index] // lengths[index], sample))

    def take(self, deal: Deal) -> None:
        own = {**self.given_up, **self.stream.cursor}
        is_new = self.number < deal.since
        self.number = deal.number
        cursor = {key: count if is_new else max(count, own.get(key, 0)) for key, count in deal.cursor.items()}
        self.given_up = {} if is_new else {key: count for key, count in own.items() if key not in cursor}
        self.stream.seek(cursor)


@settings(max_examples=60)
@given(st.data(), st.integers(6, 12), st.integers(12, 50))
def test_over_changes_of_holders_no_sample_is_drawn_twice(data: st.DataObject, num_shards: int, num: int) -> None:
    tokens = np.arange(num * LENGTH + 1, dtype=np.uint16)
    lengths = {index: len(range(index, num, num_shards)) for index in range(num_shards)}
    order = new_worker(tokens, num_shards).stream.cursor["order"]
    ledger, workers = ShardLedger(num_shards, order), dict[str, Worker]()
    trained: Counter[tuple[int, int]] = Counter()

    def report(name: str) -> None:
        """A worker goes on drawing between its report and the answer."""
        worker = workers[name]
        if worker.on_its_way is None:
            worker.on_its_way = (worker.number, {**worker.given_up, **worker.stream.cursor}, worker.unreported)
            worker.unreported = []
            return
        number, cursor, drawn = worker.on_its_way
        worker.on_its_way = None
        if ledger.is_valid(name, number):
            ledger.report(name, number, cursor)
            trained.update(drawn)
        worker.take(ledger.deal(name))

    for _ in range(data.draw(st.integers(1, 12))):
        present = sorted(data.draw(st.sets(st.sampled_from("abcdef"), min_size=1)))
        ledger.admit(present)
        # Whoever is not there any more has died: what it drew and did not report is lost.
        workers = {name: workers.get(name) or new_worker(tokens, num_shards) for name in present}
        for _ in range(data.draw(st.integers(0, 40))):
            name = data.draw(st.sampled_from(sorted(workers)))
            workers[name].draw(lengths) if data.draw(st.booleans()) else report(name)
    for _ in range(6):  # told to stop, stopped, free, taken: two calls for a report
        for name in sorted(workers):
            report(name)
    held = sorted(index for worker in workers.values() for index in worker.stream.shards)
    assert held == list(range(num_shards)), "each shard has one holder again"
    assert all(count == 1 for count in trained.values()), "a sample twice in an epoch"
    assert sum(ledger.drawn.values()) == trained.total()
    for index in range(num_shards):
        whole_epochs = ledger.drawn.get(index, 0) // lengths[index]
        assert all(
            (epoch, sample) in trained for epoch in range(whole_epochs) for sample in range(index, num, num_shards)
        )


def new_worker(tokens: np.ndarray, num_shards: int) -> Worker:
    stream = TokenStream(tokens, LENGTH, 1, Shard(0, num_shards), "seed")
    stream.seek(cursor_of(stream.cursor["order"], {}))
    return Worker(stream)


def test_a_shard_moves_only_once_its_holder_has_stopped_and_said_how_far_it_is() -> None:
    ledger = ShardLedger(2, order=7)
    ledger.admit(["a"])
    first = ledger.deal("a")
    assert first.cursor == {"order": 7, "shard_0": 0, "shard_1": 0} and ledger.deal("a") == first
    ledger.admit(["a", "b"])
    assert ledger.deal("b").cursor == {"order": 7}, "its shard is with the other still"
    ledger.report("a", first.number, {"order": 7, "shard_0": 3, "shard_1": 3})
    told = ledger.deal("a")
    assert told.number > first.number and told.cursor == {"order": 7, "shard_0": 3}
    ledger.report("a", first.number, {"order": 7, "shard_0": 4, "shard_1": 4})
    assert ledger.deal("b").cursor == {"order": 7}, "it was drawing from both when it said that"
    ledger.report("a", told.number, {"order": 7, "shard_0": 5, "shard_1": 4})
    assert ledger.deal("b").cursor == {"order": 7, "shard_1": 4}


def test_one_that_is_gone_has_no_say_and_comes_back_as_a_newcomer() -> None:
    ledger = ShardLedger(2, order=7)
    ledger.admit(["a", "b"])
    before, _ = ledger.deal("a"), ledger.deal("b")
    ledger.admit(["b"])
    assert not ledger.is_valid("a", before.number) and ledger.deal("a").number == 0
    assert len(ledger.deal("b").cursor) == 3
    ledger.admit(["a", "b"])
    assert not ledger.is_valid("a", before.number) and ledger.deal("a").since > before.number


def test_a_newcomer_takes_only_its_share() -> None:
    ledger = ShardLedger(9, order=7)
    ledger.admit(["c", "d"])
    before = dict(ledger.wanted)
    ledger.admit(["a", "c", "d"])
    moved = [index for index in range(9) if ledger.wanted[index] != before[index]]
    assert {ledger.wanted[index] for index in moved} == {"a"} and len(moved) == 3


def test_a_late_report_takes_nothing_back() -> None:
    ledger = ShardLedger(1, order=7)
    ledger.admit(["a"])
    number = ledger.deal("a").number
    ledger.report("a", number, {"order": 7, "shard_0": 5})
    ledger.report("a", number, {"order": 7, "shard_0": 3})
    assert ledger.deal("a").cursor == {"order": 7, "shard_0": 5}
    with pytest.raises(ValueError, match="no position in 1 shards"):
        ledger.report("a", number, {"order": 7, "shard_1": 0})
