"""Runs of reinforcement learning under random crashes, power losses, freezes, partitions, loss and duplication.

Nothing staler than the bound is ever trained on, no prompt is lost or counted twice, an answer that was taken is the
one that is trained on, a version is the same whoever makes it again, and who labels old weights as new is caught. Bugs
are planted, to show that these very runs catch them.
"""

from collections.abc import Callable

import pytest

from farflung.systems.alignment import installing
from farflung.systems.alignment.deltas import Version
from farflung.systems.alignment.fetching import Fetching
from farflung.systems.alignment.hub import Hub
from farflung.systems.alignment.ledger import Ledger
from farflung.systems.alignment.messages import Canary, Manifest
from farflung.systems.alignment.protocols import Policy
from farflung.systems.alignment.records import Kept, Record, Stepped
from farflung.systems.alignment.trainer import Trainer
from farflung.wire.tensor import MalformedTensor
from farflung.world.doors import World
from farflung.world.effects import Effect
from tests.chaos import alignment_scenario
from tests.chaos.stories import goes_wrong, told_twice

pytestmark = pytest.mark.chaos

NUM_SEEDS, NUM_SEEDS_QUICK = 320, 12


def check(seeds: range) -> None:
    stories = {seed: alignment_scenario.run(seed) for seed in seeds}
    assert {seed: story.breaches for seed, story in stories.items() if story.breaches} == {}
    assert sum(story.num_faults for story in stories.values()) > 20 * len(seeds), "the faults must strike while it runs"
    assert sum(story.num_lives for story in stories.values()) > 1.5 * len(seeds), "trainers must come back"
    assert sum(story.num_stale for story in stories.values()) > len(seeds) / 2, "answers must become too old"
    assert any(story.is_liar_caught for story in stories.values())


@pytest.mark.timeout(400)
def test_some_seeds() -> None:
    check(range(NUM_SEEDS_QUICK))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_all_seeds() -> None:
    check(range(NUM_SEEDS_QUICK, NUM_SEEDS))


def lazy_disk(patch: pytest.MonkeyPatch) -> None:
    """Planted bug: answers are acknowledged, and written with the next ones."""
    waiting: dict[int, list[Effect]] = {}
    write = Hub._write

    def write_later(self: Hub, record: Record) -> list[Effect]:
        before, waiting[id(self)] = waiting.get(id(self), []), write(self, record)
        return before

    patch.setattr(Hub, "_write", write_later)


def no_gates(patch: pytest.MonkeyPatch) -> None:
    """Planted bug: nobody looks at how old an answer is."""
    patch.setattr(Ledger, "is_stale", lambda self, rollout: False)
    patch.setattr(Ledger, "version_needed", lambda self, rank: 0)


def forgotten_step(patch: pytest.MonkeyPatch) -> None:
    """Planted bug: a restart leaves out the newest step that was made."""
    read = Kept.read

    def read_most(world: World) -> Kept:
        kept = read(world)
        steps = [record for record in kept.records if isinstance(record, Stepped)]
        records = tuple(record for record in kept.records if not steps or record is not steps[-1])
        return Kept(kept.saved, records, kept.num_records, kept.published)

    patch.setattr(Kept, "read", read_most)


def partial_download(patch: pytest.MonkeyPatch) -> None:
    """Planted bug: what has come of a version is installed and called by its name."""
    unpack, is_done = installing.unpack_version, Fetching.is_done.fget
    assert is_done is not None

    def unpack_some(manifest: Manifest, base: Version, chunk: Callable[[bytes], bytes]) -> Version:
        try:
            return unpack(manifest, base, chunk)
        except MalformedTensor:
            return Version(manifest.version, manifest.weights_hash, base.tensors)

    def install(policy: Policy, new: Version, old: Version, canary: Canary | None, tolerance: float) -> None:
        policy.install(new.number, new.weights_hash, new.tensors)

    def is_nearly_done(self: Fetching) -> bool:
        return is_done(self) or not self.manifests[0].is_anchor

    patch.setattr(Fetching, "is_done", property(is_nearly_done))
    patch.setattr(installing, "unpack_version", unpack_some)
    patch.setattr(installing, "install", install)


def sleeping_auditor(patch: pytest.MonkeyPatch) -> None:
    """Planted bug: nothing is audited, although it should be."""

    async def sleep(self: Trainer, mailbox: object, groups: object) -> bool:
        return True

    patch.setattr(Trainer, "_pass_audit", sleep)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("plant", "sentence"),
    [
        (lazy_disk, "was taken, and sampled once more"),
        (no_gates, "was trained on an answer of version"),
        (forgotten_step, "answers are lost"),
        (partial_download, "was trained on a lie"),
        (sleeping_auditor, "was trained on a lie"),
    ],
)
def test_planted_bugs_are_caught(
    plant: Callable[[pytest.MonkeyPatch], None], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    said: list[str] = []

    def is_caught(seed: int) -> bool:
        goes_wrong(lambda: breaches(seed))
        return any(sentence in breach for breach in said)

    def breaches(seed: int) -> list[str]:
        said.extend(alignment_scenario.run(seed).breaches)
        return said

    assert any(is_caught(seed) for seed in range(1, 60, 2))


def test_two_processes_that_hash_differently_tell_the_same_story() -> None:
    one, two = told_twice("tests.chaos.alignment_scenario", "4")
    assert one == two and one.endswith("| []\n")
