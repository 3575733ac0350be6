"""Whole trees of servers without faults: they learn, end, and their counts add up."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from farflung.sim.faults import Faults, nth
from farflung.systems.hierarchy.config import HierarchyConfig
from tests.hierarchies import Quadratic, SimulatedHierarchy, targets

SIZES = {"a": (3, 4), "b": (5,)}
ZEROS = {name: torch.zeros(size) for name, size in SIZES.items()}
CONFIG = HierarchyConfig(
    budget_steps=2000,
    num_local_steps=8,
    updates_per_push=4,
    local_delay=2,
    local_learning_rate=0.5,
    local_momentum=0.5,
    global_delay=1,
    global_learning_rate=0.7,
    global_momentum=0.2,
    merge_weight=0.5,
)
REGIONS = {"eu": (1.0, 2.0), "us": (1.0, 1.5)}


def test_a_tree_learns_and_its_counts_add_up() -> None:
    target = targets(1, SIZES)
    with SimulatedHierarchy(CONFIG, REGIONS, lambda region, number: Quadratic(target), ZEROS) as tree:
        reports = tree.run()
        assert tree.global_server is not None
        root = tree.global_server.report()
        for region, server in tree.servers.items():
            local = server.report()
            own = [report for name, report in reports.items() if name.startswith(region)]
            assert local.num_steps == sum(report.num_steps_taken for report in own)
            assert local.version == sum(report.num_updates for report in own) == sum(local.staleness.values())
            assert local.num_pushes == root.clients[region].num_updates == local.num_merges
            assert root.clients[region].num_steps == server.state.counters.pushed_steps
        assert root.num_steps >= CONFIG.budget_steps and root.is_over
        distance = sum(
            float((value - target[name]).norm()) for name, value in tree.global_server.state.model.parameters.items()
        )
        assert distance < 0.05 * sum(float(value.norm()) for value in target.values())
    assert all(report.is_over and report.num_steps == report.num_steps_taken for report in reports.values())


def test_slower_workers_make_fewer_steps_and_schedules_follow_global_progress() -> None:
    learners: dict[tuple[str, int], Quadratic] = {}

    def learner(region: str, number: int) -> Quadratic:
        learners[region, number] = Quadratic(targets(1, SIZES))
        return learners[region, number]

    with SimulatedHierarchy(CONFIG, {"eu": (1.0, 4.0)}, learner, ZEROS) as tree:
        reports = tree.run()
    fast, slow = reports["eu-0"], reports["eu-1"]
    assert 0.2 < slow.num_steps / fast.num_steps < 0.4
    progress = learners["eu", 1].progress
    assert progress[-1] > 0.9 and progress == sorted(progress), "the slow one is where the run is, not where it is"


def test_without_a_global_server_it_is_one_asynchronous_server() -> None:
    with SimulatedHierarchy(
        CONFIG, {"eu": (1.0, 1.3)}, lambda region, number: Quadratic(targets(1, SIZES)), ZEROS, has_global=False
    ) as tree:
        reports = tree.run()
        local = tree.servers["eu"].report()
    assert local.is_over and local.num_steps >= CONFIG.budget_steps and local.num_pushes == 0
    assert local.num_steps == sum(report.num_steps_taken for report in reports.values())


@pytest.mark.parametrize("codec", ["raw", "int4"])
def test_the_disk_of_a_server_is_bounded_whatever_the_distance_of_saved_states(codec: str) -> None:
    model = {"a": (400,)}
    num_bytes = 4 * 400
    config = replace(
        CONFIG,
        updates_per_snapshot=10_000,
        replay_bytes_max=6 * num_bytes,
        codec_up_global=codec,
        codec_down_global=codec,
        resident_bytes_max=num_bytes // 2,
    )
    most: dict[str, int] = {}
    with SimulatedHierarchy(
        config, REGIONS, lambda region, number: Quadratic(targets(1, model)), {"a": torch.zeros(400)}
    ) as tree:
        while len(tree.reports) < len(tree.workers):
            tree.simulation.advance(0.5)
            for node in ("eu-server", "us-server", "global"):
                store = tree.simulation.world(node).store
                size = sum(len(store.read(key) or b"") for key in store.keys("hierarchy/"))
                most[node] = max(size, most.get(node, 0))
        assert tree.servers["eu"].report().version > 100
    for node, size in most.items():
        # Replayed 6 (and one too many); two workers' updates and models 4; saved state 2, and the next one 2; push,
        # snapshot and its successor, answer, what is owed: 5 at most.
        assert 6 * num_bytes < size < 22 * num_bytes, f"{node}: {size / num_bytes:.1f} models"


@pytest.mark.parametrize(("codec", "num_resident"), [("raw", 2), ("int8", 1)])
def test_models_for_so_many_clients_wait_in_memory_as_its_bound_allows(codec: str, num_resident: int) -> None:
    num_bytes = 4 * 400
    config = replace(CONFIG, resident_bytes_max=5 * num_bytes // 2, codec_down_local=codec)
    target = targets(1, {"a": (400,)})
    with SimulatedHierarchy(
        config, {"eu": (1.0, 1.2, 1.4, 1.6)}, lambda region, number: Quadratic(target), {"a": torch.zeros(400)}
    ) as tree:
        reports = tree.run()
        places = [session.is_on_disk for session in tree.servers["eu"]._sessions.values()]
        assert places.count(False) == num_resident and places.count(True) == 4 - num_resident
        distance = float((tree.servers["eu"].state.model.parameters["a"] - target["a"]).norm() / target["a"].norm())
        assert distance < 0.2 and all(report.num_updates > 3 for report in reports.values())


@pytest.mark.parametrize("kind", ["ModelPart", "UpdatePart"])
@pytest.mark.parametrize("has_restart", [False, True])
def test_what_nobody_waits_for_any_more_does_not_stay_on_the_disk(kind: str, has_restart: bool) -> None:
    """A worker dies while a large model comes down, or its update goes up, and comes back for a new one."""
    config = replace(CONFIG, resident_bytes_max=0, values_per_part=64, num_parts_ahead=1, budget_steps=800)
    way = ("eu-server", "eu-0") if kind == "ModelPart" else ("eu-0", "eu-server")
    faults = Faults()
    for number in (4, 17, 40):
        when = nth(kind, number, "send", source=way[0], target=way[1])
        faults = faults.crash("eu-0", when=when, restart_after=1.0)
        if has_restart:
            when = nth(kind, number, "send", source=way[0], target=way[1])
            faults = faults.crash("eu-server", when=when, restart_after=0.5)
    with SimulatedHierarchy(
        config,
        {"eu": (1.0, 1.2)},
        lambda region, number: Quadratic(targets(1, {"a": (400,)})),
        {"a": torch.zeros(400)},
        faults=faults,
    ) as tree:
        tree.run()
        assert len([life for life in tree.lives if life.name == "eu-0"]) == 4
        tree.simulation.advance(5.0)
        store = tree.simulation.world("eu-server").store
        assert store.keys("hierarchy/dispatch/") == []
        updates = Counter(key.rpartition("/")[0] for key in store.keys("hierarchy/update/"))
        partial = {key: num_parts for key, num_parts in updates.items() if num_parts != 7}
        assert len(updates) > 3 and partial == {}, "of updates under leases that have ended"
