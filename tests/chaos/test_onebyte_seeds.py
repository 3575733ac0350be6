"""Runs of one byte per gradient under random crashes, power losses, freezes, partitions, loss and duplication.

What a sequencer has told is never lost and never contradicted, whoever orders next; no slot counts twice; all measurers
end with the weights that the journal stands for. Bugs are planted, to show that these very runs catch them.
"""

from collections.abc import Callable

import pytest

from farflung.sim.faults import Faults
from farflung.systems.onebyte.log import Log
from farflung.systems.onebyte.messages import BytePropose, ByteViewIs, View
from farflung.systems.onebyte.replica import Replica
from farflung.systems.onebyte.views import Witness
from farflung.world.address import Address
from farflung.world.effects import Append, Effect, Send
from tests.chaos import onebyte_scenario
from tests.chaos.stories import goes_wrong, told_twice

pytestmark = pytest.mark.chaos

NUM_SEEDS, NUM_SEEDS_QUICK = 320, 16


def test_an_undisturbed_run_passes_the_same_checks() -> None:
    story = onebyte_scenario.run(3, Faults())
    assert story.breaches == [] and story.num_views == 3, "both standbys are admitted, and nobody is replaced"


def check(seeds: range) -> None:
    stories = {seed: onebyte_scenario.run(seed) for seed in seeds}
    assert {seed: story.breaches for seed, story in stories.items() if story.breaches} == {}
    assert sum(story.num_faults for story in stories.values()) > 20 * len(seeds), "the faults must strike while it runs"
    assert sum(story.num_views for story in stories.values()) > 3 * len(seeds), "sequencers must be replaced"
    assert sum(story.num_late for story in stories.values()) > len(seeds), "late entries must come"


@pytest.mark.timeout(400)
def test_some_seeds() -> None:
    check(range(NUM_SEEDS_QUICK))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_all_seeds() -> None:
    check(range(NUM_SEEDS_QUICK, NUM_SEEDS))


def lazy_disk(patch: pytest.MonkeyPatch) -> None:
    """Planted bug: records reach the disk with the next beat, after they were told."""
    waiting: dict[int, list[Append]] = {}
    append, beat = Log.append, Replica.beat

    def append_later(self: Log, contents: list[bytes]) -> list[Append]:
        waiting.setdefault(id(self), []).extend(append(self, contents))
        return []

    def beat_and_sync(self: Replica, now: float) -> list[Effect]:
        return [*waiting.pop(id(self.log), []), *beat(self, now)]

    patch.setattr(Log, "append", append_later)
    patch.setattr(Replica, "beat", beat_and_sync)


def no_fence(patch: pytest.MonkeyPatch) -> None:
    """Planted bug: who misses the other goes on at once, without asking the witness."""

    def propose(self: Replica, view: View) -> list[Effect]:
        return self._adopt(view, self._presence._beat_at)

    patch.setattr(Replica, "_propose", propose)


def generous_witness(patch: pytest.MonkeyPatch) -> None:
    """Planted bug: the witness agrees with everybody."""

    def agree(self: Witness, source: Address, message: BytePropose, now: float) -> list[Effect]:
        self.view = message.view
        return [Send(source, ByteViewIs(view=message.view))]

    patch.setattr(Witness, "receive", agree)


def hasty_count(patch: pytest.MonkeyPatch) -> None:
    """Planted bug: a record counts as soon as the sequencer has it."""
    patch.setattr(Replica, "_required", lambda self: [])


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("plant", "kind"), [(lazy_disk, 1), (no_fence, 2), (generous_witness, 2), (hasty_count, 2)])
def test_planted_bugs_are_caught(
    plant: Callable[[pytest.MonkeyPatch], None], kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    seeds = range(kind, 48, 3)
    assert any(goes_wrong(lambda seed=seed: onebyte_scenario.run(seed).breaches) for seed in seeds), (
        "these runs would not have found the bug"
    )


def test_two_processes_that_hash_differently_tell_the_same_story() -> None:
    one, two = told_twice("tests.chaos.onebyte_scenario", "5")
    assert one == two and one.endswith("| []\n")
