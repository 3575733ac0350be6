"""Random crashes, power losses, freezes, partitions, duplicates and 3 % loss, over every kind of round.

Each run must come to its end with replicas that are equal to the bit, and no exchange may leave any two members with
different parameters. Two bugs are planted, to show that these very runs catch them. `make test` runs a slice of the
seeds, `make chaos` all.
"""

from collections.abc import Callable, Mapping

import pytest
import torch

from farflung.learn.shards import ShardLedger
from farflung.systems.desync.data import DealtData
from farflung.systems.desync.exchange import Exchange
from farflung.systems.desync.forming import Forming
from farflung.systems.desync.round import Coordinator
from farflung.world.address import Address
from farflung.world.effects import Effect
from tests.chaos.desync_scenario import Story, policies, run
from tests.chaos.stories import goes_wrong, told_twice

pytestmark = pytest.mark.chaos

NUM_SEEDS, NUM_SEEDS_QUICK = 300, 25
POLICIES = tuple(policies())


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def story_of(seed: int) -> Story:
    return run(POLICIES[seed % len(POLICIES)], seed)


def check(seeds: range) -> None:
    stories = {seed: story_of(seed) for seed in seeds}
    assert {seed: story.breaches for seed, story in stories.items() if story.breaches} == {}
    assert sum(story.num_faults for story in stories.values()) > 10 * len(seeds), "the faults must strike while it runs"
    assert sum(story.num_given_up for story in stories.values()) > len(seeds) // 4, "exchanges must be given up"
    assert sum(story.num_states_taken for story in stories.values()) > len(seeds) // 2, "members must come back"
    assert sum(story.num_moves for story in stories.values()) > len(seeds) // 5, "data must change hands"


def test_some_seeds() -> None:
    check(range(NUM_SEEDS_QUICK))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_all_seeds() -> None:
    check(range(NUM_SEEDS))


def hasty_commit(patch: pytest.MonkeyPatch) -> None:
    """Planted bug: an exchange counts as soon as most of its members are ready."""
    ready = Coordinator._ready

    def hasty(self: Coordinator, source: Address, exchange: int, now: float) -> list[Effect]:
        effects = ready(self, source, exchange, now)
        forming: Forming | None = self._forming
        if forming is not None and len(forming.is_ready) == len(forming.seats) - 1:
            return effects + self._commit(forming, now)
        return effects

    patch.setattr(Coordinator, "_ready", hasty)


def own_mean(patch: pytest.MonkeyPatch) -> None:
    """Planted bug: the owner of a part keeps its mean as it was before encoding."""
    put = Exchange._put_mean

    def exact(self: Exchange, index: int, values: torch.Tensor) -> None:
        part = self._parts[index]
        is_root = part.tree.root == self._seat
        put(self, index, values * (1 + 1e-6) if is_root else values)

    patch.setattr(Exchange, "_put_mean", exact)


def no_rewind(patch: pytest.MonkeyPatch) -> None:
    """Planted bug: a worker whose steps are dropped goes on with the samples after them."""

    def stay(self: DealtData) -> None:
        pass

    patch.setattr(DealtData, "rewind", stay)


def early_release(patch: pytest.MonkeyPatch) -> None:
    """Planted bug: data change hands before their holder can have stopped to read them."""
    report = ShardLedger.report

    def hasty(self: ShardLedger, name: str, number: int, cursor: Mapping[str, int]) -> None:
        report(self, name, 1 << 60, cursor)

    patch.setattr(ShardLedger, "report", hasty)


@pytest.mark.parametrize("plant", [hasty_commit, own_mean, no_rewind, early_release])
def test_planted_bugs_are_caught(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert any(goes_wrong(lambda seed=seed: story_of(seed).breaches) for seed in range(NUM_SEEDS_QUICK)), (
        "these runs would not have found the bug"
    )


@pytest.mark.parametrize("policy", ["late", "adaptive"])
def test_two_processes_that_hash_differently_tell_the_same_story(policy: str) -> None:
    one, two = told_twice("tests.chaos.desync_scenario", policy, "3")
    assert one == two and one.endswith("| []\n")
