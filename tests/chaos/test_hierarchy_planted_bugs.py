"""Bugs planted in the servers of a tree are found by the checks of the random runs: those can fail."""

from collections.abc import Callable, Sequence

import pytest

from farflung.systems.hierarchy.global_server import GlobalServer
from farflung.systems.hierarchy.local_server import LocalServer
from farflung.systems.hierarchy.messages import UpdatePart, WhereIs
from farflung.systems.hierarchy.records import Committed, Merged, Record
from farflung.systems.hierarchy.server import Server
from farflung.systems.hierarchy.state import ServerState
from farflung.systems.hierarchy.work import Work
from farflung.world.effects import Effect
from tests.chaos import hierarchy_scenario

pytestmark = pytest.mark.chaos
SEEDS = range(1, 24, 2)
"""Odd: those whose journals are never shortened."""


def complaint() -> str:
    """What the first seed says that fails."""
    for seed in SEEDS:
        try:
            hierarchy_scenario.run(seed)
        except AssertionError as error:
            return str(error)
    raise RuntimeError("no seed finds it")


def test_without_a_bug_these_seeds_pass() -> None:
    for seed in SEEDS[:3]:
        hierarchy_scenario.run(seed)


def as_if_new(
    original: Callable[[Server, object, UpdatePart | WhereIs], Sequence[Effect]],
) -> Callable[[Server, object, UpdatePart | WhereIs], Sequence[Effect]]:
    """The handler of a server that takes every update for one that it has not got."""

    def handle(self: Server, session: object, message: UpdatePart | WhereIs) -> Sequence[Effect]:
        client = self.state.ledger.clients[message.name]
        known, client.sequence = client.sequence, min(client.sequence, message.sequence - 1)
        effects = original(self, session, message)
        client.sequence = max(known, client.sequence)
        return effects

    return handle


@pytest.mark.parametrize(
    ("server", "sentence"),
    [(LocalServer, "an update is counted once"), (GlobalServer, "an update is credited twice")],
)
def test_an_update_that_is_taken_again_is_found(
    server: type[Server], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_update_part", "_where_is"):
        monkeypatch.setattr(server, name, as_if_new(getattr(Server, name)))
    assert sentence in complaint()


def test_an_acknowledgement_before_the_journal_is_synced_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ServerState.record
    held: dict[int, list[Effect]] = {}

    def record(self: ServerState, one: Record) -> list[Effect]:
        before, held[id(self)] = held.get(id(self), []), original(self, one)
        return before

    monkeypatch.setattr(ServerState, "record", record)
    assert "an update is counted once, and a death hides one at most" in complaint()


def test_a_restart_that_leaves_out_a_record_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ServerState.restore

    def restore(self: ServerState, replay: Callable[[Committed | Merged], Work]) -> list[Effect]:
        last = max((one.number for one in self._kept.records if isinstance(one, Committed)), default=0)

        def replay_most(one: Committed | Merged) -> Work:
            if one.number != last:
                yield from replay(one)

        return original(self, replay_most)

    monkeypatch.setattr(ServerState, "restore", restore)
    assert "was applied so often" in complaint()


def test_a_version_that_a_restart_gives_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ServerState.restore

    def restore(self: ServerState, replay: Callable[[Committed | Merged], Work]) -> list[Effect]:
        def go_back() -> Work:
            self.counters.version = max(0, self.counters.version - 2)
            yield from ()

        return [*original(self, replay), *self.queue.push(go_back())]

    monkeypatch.setattr(ServerState, "restore", restore)
    assert "versions only grow" in complaint()


def test_staleness_that_is_counted_one_too_high_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ServerState.applied

    def applied(self: ServerState, record: Committed | Merged, num_bytes: int) -> None:
        original(self, record, num_bytes)
        if isinstance(record, Committed) and self.counters.version % 10 == 0:
            counts = self.counters.staleness
            newest = max(counts)
            counts[newest] -= 1
            counts[newest + 1] = counts.get(newest + 1, 0) + 1

    monkeypatch.setattr(ServerState, "applied", applied)
    assert "staleness is counted" in complaint()
