"""HALoS as equalities: what servers compute is the stated rule, and what a tree reduces to when it is made flat."""

from dataclasses import dataclass, replace

import pytest
import torch

from farflung.learn.parameters import Tensors, copies
from farflung.learn.rules import DelayedNesterov, Descent
from farflung.sim.station import MessageEvent
from farflung.sim.topology import Link, Topology
from farflung.systems.hierarchy.config import HierarchyConfig
from farflung.systems.hierarchy.merge import decode_part
from farflung.systems.hierarchy.messages import UpdatePart
from farflung.systems.hierarchy.pace import scaled_steps
from farflung.wire.parts import plan_of
from tests.hierarchies import Quadratic, SimulatedHierarchy, targets
from tests.tensors import difference

SIZES = {"a": (3, 4), "b": (5,)}
ZEROS = {name: torch.zeros(size) for name, size in SIZES.items()}
INSTANT = Topology(within=Link(), between=Link())

# Relative speeds of the published cluster's sixteen workers (env.yaml), by region.
SPEEDS = [
    [0.232, 0.907, 0.828, 0.347],
    [0.574, 0.531, 0.722, 0.194],
    [0.852, 0.132, 0.896, 0.107],
    [0.827, 0.515, 0.527, 0.788],
]


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [
        (32, [9, 32, 30, 13, 21, 19, 26, 7, 31, 5, 32, 4, 30, 19, 19, 28]),
        (8, [3, 8, 8, 4, 6, 5, 7, 2, 8, 2, 8, 1, 8, 5, 5, 7]),
    ],
)
def test_scaled_steps_are_those_of_the_published_cluster(num_steps: int, expected: list[int]) -> None:
    speeds = [speed / 0.907 for region in SPEEDS for speed in region]
    assert [scaled_steps(num_steps, speed, 1.0) for speed in speeds] == expected


def test_measured_speeds_that_differ_by_rounding_give_the_same_steps() -> None:
    assert scaled_steps(8, 4.0000001, 8.0) == 4
    assert scaled_steps(8, 9.0, 8.0) == 8
    assert scaled_steps(8, 0.0001, 8.0) == 1


@dataclass
class Said:
    """The worker updates of a tree, in the order in which their server committed them."""

    config: HierarchyConfig
    updates: dict[str, list[Tensors]]

    def see(self, event: MessageEvent) -> None:
        part = event.message
        if isinstance(part, UpdatePart) and event.phase == "deliver" and "-server" in event.target:
            assert part.header.num_parts == 1
            (plan,) = plan_of(ZEROS, self.config.values_per_part)
            delta = decode_part(part.slices, plan)
            self.updates.setdefault(event.target, []).append({name: delta[name].reshape(SIZES[name]) for name in SIZES})


def config(**changes: object) -> HierarchyConfig:
    base = HierarchyConfig(
        budget_steps=160,
        num_local_steps=4,
        local_learning_rate=0.4,
        local_momentum=0.7,
        local_delay=3,
        global_learning_rate=0.6,
        global_momentum=0.5,
        global_delay=2,
        updates_per_push=3,
        merge_weight=0.25,
    )
    return replace(base, **changes)


def same(one: Tensors, other: Tensors) -> bool:
    return all(torch.allclose(one[name], other[name], rtol=0, atol=1e-6) for name in other)


def test_a_lone_server_is_delayed_nesterov_on_the_updates_in_their_order() -> None:
    """Asynchronous local SGD: theta descends on each worker's difference by eq. DN with lr = eta N."""
    said = Said(config(), {})
    with SimulatedHierarchy(
        said.config, {"eu": (1.0, 1.3, 2.1)}, lambda r, n: Quadratic(targets(n, SIZES)), ZEROS, has_global=False
    ) as tree:
        tree.simulation.watch(said.see)
        tree.run()
        rule = DelayedNesterov(learning_rate=0.4 * 3, momentum=0.7, num_delay=3)
        theta = copies(ZEROS)
        state = rule.init(theta)
        for delta in said.updates["eu-server"]:
            rule.update(theta, delta, state)
        assert state.step == tree.servers["eu"].report().version > 30
        assert same(theta, tree.servers["eu"].state.model.parameters)


def test_a_worker_sends_start_minus_end_of_its_local_steps() -> None:
    said = Said(config(local_learning_rate=1.0, local_momentum=0.0, local_delay=1, budget_steps=12), {})
    target = targets(4, SIZES)
    with SimulatedHierarchy(
        said.config, {"eu": (1.0,)}, lambda r, n: Quadratic(target), ZEROS, has_global=False
    ) as tree:
        tree.simulation.watch(said.see)
        tree.run()
        alone = Quadratic(target)
        for delta in said.updates["eu-server"]:
            before = copies(alone.parameters)
            alone.run(4, lambda step: 0.0)
            assert same(delta, difference(before, alone.parameters))
        # eta = 1 without momentum or delay: the server's model is the worker's, as if it had trained alone.
        assert len(said.updates["eu-server"]) == 3 and same(alone.parameters, tree.servers["eu"].state.model.parameters)


def flat(updates: list[Tensors], settings: HierarchyConfig) -> tuple[Tensors, Tensors]:
    """One region's local and global model when pushes travel in no time (paper, Algorithm 1, written out)."""
    local, root = settings.local_rule, settings.global_rule
    theta, theta_g = copies(ZEROS), copies(ZEROS)
    snapshot = copies(ZEROS)
    state, state_g = local.init(theta), root.init(theta_g)
    for number, delta in enumerate(updates, 1):
        local.update(theta, delta, state)
        if number % settings.updates_per_push == 0:
            root.update(theta_g, difference(snapshot, theta), state_g)
            for name, tensor in theta.items():
                tensor.lerp_(theta_g[name], settings.merge_weight)
            snapshot = copies(theta)
    return theta, theta_g


@pytest.mark.parametrize("updates_per_push", [1, 3])
@pytest.mark.parametrize("merge_weight", [0.0, 0.25, 1.0])
def test_one_region_with_instant_links_is_the_written_out_algorithm(updates_per_push: int, merge_weight: float) -> None:
    said = Said(config(updates_per_push=updates_per_push, merge_weight=merge_weight), {})
    with SimulatedHierarchy(
        said.config, {"eu": (1.0, 1.37)}, lambda r, n: Quadratic(targets(n, SIZES)), ZEROS, topology=INSTANT
    ) as tree:
        tree.simulation.watch(said.see)
        tree.run()
        assert tree.global_server is not None
        # The last updates may arrive after the region has heard that the run is over, and are pushed no more.
        num_pushed = tree.global_server.report().version * updates_per_push
        theta, theta_g = flat(said.updates["eu-server"][:num_pushed], said.config)
        assert num_pushed > 30 and same(theta_g, tree.global_server.state.model.parameters)
        if num_pushed == len(said.updates["eu-server"]):
            assert same(theta, tree.servers["eu"].state.model.parameters)


def test_one_region_that_merges_everything_at_once_is_a_lone_server() -> None:
    """K = 1, alpha = 1, a global server that takes differences as they are: the tree is its flat form."""
    settings = config(
        updates_per_push=1, merge_weight=1.0, global_learning_rate=1.0, global_momentum=0.0, global_delay=1
    )
    assert same_rule(settings.global_rule, Descent(learning_rate=1.0))
    said = Said(settings, {})
    with SimulatedHierarchy(
        settings, {"eu": (1.0, 1.37)}, lambda r, n: Quadratic(targets(n, SIZES)), ZEROS, topology=INSTANT
    ) as tree:
        tree.simulation.watch(said.see)
        tree.run()
        assert tree.global_server is not None
        theta = copies(ZEROS)
        state = settings.local_rule.init(theta)
        num_pushed = tree.global_server.report().version
        for delta in said.updates["eu-server"][:num_pushed]:
            settings.local_rule.update(theta, delta, state)
        assert num_pushed > 30 and same(theta, tree.global_server.state.model.parameters)


def same_rule(one: DelayedNesterov, other: Descent) -> bool:
    """Whether both take random deltas alike."""
    first, second = copies(ZEROS), copies(ZEROS)
    states = one.init(first), other.init(second)
    for seed in range(5):
        one.update(first, targets(seed, SIZES), states[0])
        other.update(second, targets(seed, SIZES), states[1])
    return same(first, second)


def test_a_difference_in_one_setting_is_seen() -> None:
    """Negative control: the comparison fails for a rule that is not the one configured."""
    said = Said(config(), {})
    with SimulatedHierarchy(
        said.config, {"eu": (1.0, 1.3)}, lambda r, n: Quadratic(targets(n, SIZES)), ZEROS, has_global=False
    ) as tree:
        tree.simulation.watch(said.see)
        tree.run()
        theta = copies(ZEROS)
        rule = DelayedNesterov(learning_rate=0.4 * 3, momentum=0.69, num_delay=3)
        state = rule.init(theta)
        for delta in said.updates["eu-server"]:
            rule.update(theta, delta, state)
        assert not same(theta, tree.servers["eu"].state.model.parameters)
