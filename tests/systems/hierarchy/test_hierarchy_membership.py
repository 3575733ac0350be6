"""Who may take part, and what happens to the work and the data of those who come and go."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

import msgspec
import pytest
import torch

from farflung.sim.errors import SimulationError
from farflung.sim.faults import Faults, nth
from farflung.sim.station import MessageEvent
from farflung.systems.hierarchy.config import HierarchyConfig
from farflung.systems.hierarchy.messages import ACTOR, Join, Welcome
from farflung.systems.hierarchy.worker import Worker
from farflung.wire.message import Refusal
from farflung.world.address import Address, PeerId
from farflung.world.errors import Refused
from farflung.world.mailbox import Mailbox, call
from tests.hierarchies import Descended, Quadratic, SimulatedHierarchy, targets

SIZES = {"a": (3, 4), "b": (5,)}
ZEROS = {name: torch.zeros(size) for name, size in SIZES.items()}
CONFIG = HierarchyConfig(
    budget_steps=1200, num_local_steps=5, updates_per_push=3, num_shards=3, ask_again_seconds=1.0, lease_seconds=5.0
)
SERVER = Address(PeerId("eu-server"), ACTOR)


class Samples:
    """Sample numbers of one shard, and the log of who drew which."""

    def __init__(self, log: list[tuple[int, int]]) -> None:
        self.log = log
        self.shard = -1
        self.next = 0

    @property
    def cursor(self) -> dict[str, int]:
        return {"next": self.next}

    def assign(self, shard: int, cursor: Mapping[str, int]) -> None:
        self.shard, self.next = shard, cursor.get("next", 0)

    def draw(self) -> None:
        self.log.append((self.shard, self.next))
        self.next += 1


class Sampling(Quadratic):
    """Draws a sample for each step."""

    def __init__(self, samples: Samples) -> None:
        super().__init__(targets(1, SIZES))
        self.samples = samples

    def run(self, num_steps: int, progress_of_step: Callable[[int], float]) -> Descended:
        for _ in range(num_steps):
            self.samples.draw()
        return super().run(num_steps, progress_of_step)


class Drawing(SimulatedHierarchy):
    """One region whose workers draw samples from shards."""

    @classmethod
    def make(cls, num_workers: int, faults: Faults | None = None, config: HierarchyConfig = CONFIG) -> "Drawing":
        log: list[tuple[int, int]] = []
        samples: dict[str, Samples] = {}

        def learner(region: str, number: int) -> Sampling:
            samples[f"{region}-{number}"] = Samples(log)
            return Sampling(samples[f"{region}-{number}"])

        tree = cls(
            config,
            {"eu": (1.0,) * num_workers},
            learner,
            ZEROS,
            has_global=False,
            data=lambda region, number: samples[f"{region}-{number}"],
            faults=faults or Faults(),
        )
        tree.log = log
        return tree

    log: list[tuple[int, int]]


def test_no_two_workers_draw_the_same_sample() -> None:
    with Drawing.make(3) as tree:
        tree.run()
        assert {shard for shard, _ in tree.log} == {0, 1, 2}
        assert len(set(tree.log)) == len(tree.log) >= CONFIG.budget_steps


def test_the_shard_of_a_dead_worker_goes_on_with_a_newcomer() -> None:
    with Drawing.make(3, Faults().crash("eu-1", at=10.0)) as tree:
        tree.simulation.advance(20.0)
        drawn = [number for shard, number in tree.log if shard == 1]
        del tree.workers["eu-1"]
        tree.add_worker("eu", 7)
        reports = tree.run()
        clients = tree.servers["eu"].report().clients
        assert (clients["eu-1"].shard, clients["eu-7"].shard) == (-1, 1)
        later = [number for shard, number in tree.log if shard == 1][len(drawn) :]
        # What the dead one drew after its last acknowledged update is drawn again, and nothing is left out.
        assert later[0] == clients["eu-1"].num_steps and later == list(range(later[0], later[0] + len(later)))
        assert drawn[-1] + 1 - later[0] <= CONFIG.num_local_steps
        assert reports["eu-7"].num_steps_taken == clients["eu-7"].num_steps > 0


def test_a_newcomer_begins_with_the_model_and_the_progress_of_the_run() -> None:
    with Drawing.make(2) as tree:
        tree.simulation.advance(20.0)
        tree.add_worker("eu", 2)
        tree.simulation.advance(0.6)
        newcomer = tree.workers["eu-2"].report()
        assert newcomer.version > 30 and newcomer.global_steps > 150
        tree.run()
        assert tree.servers["eu"].report().clients["eu-2"].num_steps > 100


def test_without_a_free_shard_a_newcomer_waits_and_takes_the_first() -> None:
    with Drawing.make(3, Faults().crash("eu-0", at=10.0)) as tree:
        tree.add_worker("eu", 3)
        tree.simulation.advance(9.0)
        assert tree.workers["eu-3"].report().num_steps == 0
        notes = [event.detail for event in tree.simulation.trace.of("note", "eu-3")]
        assert "all 3 shards of the data are taken: wait, or start the run with more shards" in notes[0]
        del tree.workers["eu-0"]
        tree.run()
        assert tree.servers["eu"].report().clients["eu-3"].shard == 0


def test_a_worker_that_was_cut_off_comes_back_and_nothing_is_applied_twice() -> None:
    """Its lease ends while its update is under way: the update is told of at joining, and applied once."""
    config = replace(CONFIG, num_shards=2, budget_steps=1000)
    faults = Faults().partition(["eu-0"], ["eu-server"], during=(5.05, 30.0))
    with Drawing.make(2, faults, config) as tree:
        tree.add_worker("eu", 2)
        tree.simulation.advance(29.0)
        assert tree.servers["eu"].report().clients["eu-2"].shard == 0
        tree.simulation.crash("eu-2")
        del tree.workers["eu-2"]
        reports = tree.run()
        clients = tree.servers["eu"].report().clients
        assert tree.servers["eu"].state.ledger.clients["eu-0"].lease > 1
        assert clients["eu-0"].num_steps == reports["eu-0"].num_steps_taken == reports["eu-0"].num_steps


def test_an_update_whose_acknowledgement_was_lost_with_the_lease_is_not_sent_under_the_next_one() -> None:
    config = replace(CONFIG, num_shards=2, budget_steps=800)
    with Drawing.make(2, config=config) as tree:
        is_due = nth("UpdateTaken", 6, "send", source="eu-server", target="eu-0")
        cut = {"eu-0": 0, "eu-server": 1}
        struck: list[float] = []

        def strike(event: MessageEvent) -> None:
            if is_due(event):
                struck.append(event.time)
                tree.simulation.cut(cut)

        tree.simulation.watch(strike)
        tree.add_worker("eu", 2)
        tree.simulation.advance(25.0)
        assert struck and tree.servers["eu"].report().clients["eu-2"].shard == 0
        assert tree.workers["eu-0"].report().num_updates == 5 < tree.servers["eu"].report().clients["eu-0"].num_updates
        tree.simulation.crash("eu-2")
        del tree.workers["eu-2"]
        tree.simulation.heal(cut)
        reports = tree.run()
        client = tree.servers["eu"].report().clients["eu-0"]
        assert tree.servers["eu"].state.ledger.clients["eu-0"].lease == 2
        assert (client.num_updates, client.num_steps) == (reports["eu-0"].num_updates, reports["eu-0"].num_steps)


def test_a_region_joins_while_the_others_train() -> None:
    config = replace(CONFIG, num_shards=0, budget_steps=3000)
    with SimulatedHierarchy(config, {"eu": (1.0, 1.0)}, lambda r, n: Quadratic(targets(1, SIZES)), ZEROS) as tree:
        tree.simulation.advance(20.0)
        tree.add_server("us")
        tree.add_worker("us", 0)
        tree.simulation.advance(5.0)
        assert tree.global_server is not None
        first = tree.workers["us-0"].report()
        assert first.global_steps > 100, "the newcomer knows how far the run is"
        tree.run()
        assert tree.global_server.report().clients["us"].num_steps > 300
        joined = [event for event in tree.simulation.trace.of("deliver", "us-server") if "Welcome" in event.detail]
        assert len(joined) == 1


def ask_to_join(tree: SimulatedHierarchy, **changes: object) -> object:
    """The server's answer to a Join that differs from an honest one."""
    run = tree.servers["eu"].run
    fields: dict[str, object] = {"name": "eu-9", "run": run, "instance": "1", **changes}

    async def ask() -> object:
        with Mailbox(tree.simulation.world("eu-0"), "asking") as mailbox:
            join = Join(**fields)  # pyright: ignore[reportArgumentType]
            return await call(mailbox, SERVER, join, tree.simulation.now() + 1.0)

    return tree.simulation.run(ask(), node="eu-0")


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("code", "0.0", "this run is on version .*, not 0.0: install the same on every machine"),
        ("layout", b"other", "a model with other parameters: start the worker from the run's own model"),
        ("config", b"other", "other settings: start the worker with the run's own file"),
    ],
)
def test_a_worker_of_another_run_is_refused_in_a_sentence(field: str, value: object, sentence: str) -> None:
    with Drawing.make(1) as tree:
        run = msgspec.structs.replace(tree.servers["eu"].run, **{field: value})
        answer = ask_to_join(tree, run=run)
        assert isinstance(answer, Refusal) and not answer.retry_after_seconds
        assert re.search(sentence, answer.reason)
        notes = [event.detail for event in tree.simulation.trace.of("note", "eu-server")]
        assert any("refused eu-9 at eu-0" in note and answer.reason in note for note in notes)


def test_names_are_of_one_worker_at_a_time() -> None:
    with Drawing.make(2) as tree:
        tree.simulation.advance(1.0)
        answer = ask_to_join(tree, name="eu-1")
        assert isinstance(answer, Refusal) and answer.retry_after_seconds > 0
        assert "a worker called eu-1 is at work on eu-1: choose another name" in answer.reason
        assert isinstance(ask_to_join(tree, name="a/../b"), Refusal)


def test_a_join_that_arrives_twice_gives_one_lease_and_a_late_one_none() -> None:
    with Drawing.make(1) as tree:
        tree.simulation.advance(1.0)
        first, second = ask_to_join(tree, instance="x"), ask_to_join(tree, instance="x")
        assert isinstance(first, Welcome) and first == second
        newer = ask_to_join(tree, instance="y", lease=first.lease)
        assert isinstance(newer, Welcome) and newer.lease == first.lease + 1
        with pytest.raises(Exception, match="no answer"):
            ask_to_join(tree, instance="x")


def test_a_worker_with_other_settings_says_why_it_ends() -> None:
    with Drawing.make(1) as tree:
        other = replace(CONFIG, num_shards=0, num_local_steps=6)
        worker = Worker(tree.simulation.world("eu-0"), other, Quadratic(ZEROS), name="eu-5", server=SERVER)
        with pytest.raises(Refused, match="this run has other settings"):
            tree.simulation.run(worker.run(), node="eu-0")


def test_an_update_that_is_not_finite_is_refused_and_harms_nobody() -> None:
    with Drawing.make(2, config=replace(CONFIG, num_shards=0)) as tree:
        bad = Quadratic(targets(1, SIZES), rate=float("inf"))
        worker = Worker(tree.simulation.world("eu-0"), tree.config, bad, name="eu-5", server=SERVER)
        with pytest.raises((Refused, SimulationError), match="values that are not finite"):
            tree.simulation.run(worker.run(), node="eu-0")
        tree.run()
        values = tree.servers["eu"].state.model.parameters.values()
        assert all(bool(tensor.isfinite().all()) for tensor in values)
