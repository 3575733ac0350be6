"""Runs with private data under random crashes, power losses, freezes, partitions, loss and duplication.

What holds for all runs holds for shared slots too, whatever comes late; where entries are masked, nobody ever sends two
different things for a round, in whichever life, and what the journal holds are sums over whole cohorts. Bugs are
planted, to show that these very runs catch them.
"""

from collections.abc import Callable, Iterable, Sequence

import pytest

from farflung.systems.onebyte.ledger import Ledger
from farflung.systems.onebyte.masked_leading import MaskedLeading
from farflung.systems.onebyte.masked_measurements import MaskedMeasurements
from farflung.systems.onebyte.means import SharedMeans
from farflung.systems.onebyte.messages import ByteCohort, ByteMasked
from farflung.systems.onebyte.shared_slots import EveryonesSlots
from farflung.world.effects import Effect
from tests.chaos import onebyte_scenario
from tests.chaos.stories import goes_wrong, told_twice

pytestmark = pytest.mark.chaos

NUM_SEEDS, NUM_SEEDS_QUICK = 160, 3
KINDS = tuple(onebyte_scenario.SHARED)


def check(kind: str, seeds: range) -> None:
    stories = {seed: onebyte_scenario.run(seed, kind=kind) for seed in seeds}
    assert {seed: story.breaches for seed, story in stories.items() if story.breaches} == {}
    assert sum(story.num_faults for story in stories.values()) > 20 * len(seeds), "the faults must strike while it runs"
    assert sum(story.num_views for story in stories.values()) > 3 * len(seeds), "sequencers must be replaced"
    if kind == "masked":
        assert sum(story.num_empty for story in stories.values()) > len(seeds), "cohorts must fall apart"
    else:
        assert sum(story.num_late for story in stories.values()) > len(seeds), "late entries must come"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", KINDS)
def test_some_seeds(kind: str) -> None:
    check(kind, range(NUM_SEEDS_QUICK))


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kind", KINDS)
def test_all_seeds(kind: str) -> None:
    check(kind, range(NUM_SEEDS_QUICK, NUM_SEEDS))


def forgetful_window(patch: pytest.MonkeyPatch) -> None:
    """Planted bug: a sequencer that takes over does not know what the journal holds of the rounds before."""
    patch.setattr(EveryonesSlots, "mark_committed", lambda self, entries: None)


def late_on_top(patch: pytest.MonkeyPatch) -> None:
    """Planted bug: late entries are added as a mean of their own."""
    follow = SharedMeans.follow

    def forget_and_follow(self: SharedMeans, *arguments: object) -> object:
        self._weights = {}
        return follow(self, *arguments)  # pyright: ignore[reportArgumentType]

    patch.setattr(SharedMeans, "follow", forget_and_follow)


def second_cohort(patch: pytest.MonkeyPatch) -> None:
    """Planted bug: a cohort that loses a member is formed anew for the same round, and its members go along."""
    close, ask = MaskedLeading._close_if_due, MaskedMeasurements.ask_for

    def form_again(self: MaskedLeading, now: float) -> list[Effect]:
        if self._broken and self._cohort:
            self._broken, self._cohort = "", {}
            return self._form(now)
        return close(self, now)

    def forget_and_ask(self: MaskedMeasurements, message: ByteCohort, ledger: Ledger) -> Sequence[ByteMasked] | None:
        self._took_part = set() if message.members else self._took_part
        return ask(self, message, ledger)

    patch.setattr(MaskedLeading, "_close_if_due", form_again)
    patch.setattr(MaskedMeasurements, "ask_for", forget_and_ask)


def hasty_sum(patch: pytest.MonkeyPatch) -> None:
    """Planted bug: when a member is lost, the others' sum is taken for a whole one."""
    lose = MaskedLeading._lose

    def drop(self: MaskedLeading, key: str) -> None:
        if len(self._masked) > 2:
            self._cohort.pop(key, None)
        lose(self, key)

    patch.setattr(MaskedLeading, "_lose", drop)


Plant = Callable[[pytest.MonkeyPatch], None]
PLANTS: Iterable[tuple[Plant, str, range]] = (
    (forgetful_window, "trimmed", range(6)),
    (late_on_top, "trimmed", range(6)),
    (second_cohort, "masked", range(7, 12)),
    (hasty_sum, "masked", range(10, 13)),
)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("plant", "kind", "seeds"), PLANTS)
def test_planted_bugs_are_caught(plant: Plant, kind: str, seeds: range, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert any(goes_wrong(lambda seed=seed: onebyte_scenario.run(seed, kind=kind).breaches) for seed in seeds), (
        "these runs would not have found the bug"
    )


def test_two_processes_that_hash_differently_tell_the_same_story() -> None:
    one, two = told_twice("tests.chaos.onebyte_scenario", "5", "masked")
    assert one == two and one.endswith("| []\n")
