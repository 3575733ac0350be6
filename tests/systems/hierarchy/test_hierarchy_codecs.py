"""Codecs on every link of a tree: fewer bytes, and a model that still arrives where it should."""

from dataclasses import replace

import pytest
import torch

from farflung.sim.faults import Faults
from farflung.sim.topology import Link, Topology
from farflung.systems.hierarchy.config import HierarchyConfig
from farflung.systems.hierarchy.durable import owed_key
from farflung.systems.hierarchy.merge import decode_part
from tests.hierarchies import GLOBAL, Quadratic, SimulatedHierarchy, targets

SIZES = {"a": (40, 50), "b": (77,)}
ZEROS = {name: torch.zeros(size) for name, size in SIZES.items()}
CONFIG = HierarchyConfig(
    budget_steps=2500,
    num_local_steps=8,
    updates_per_push=4,
    local_delay=1,
    local_learning_rate=0.5,
    local_momentum=0.0,
    global_delay=1,
    global_learning_rate=0.7,
    global_momentum=0.0,
    merge_weight=0.5,
)
LINKS = ("codec_up_local", "codec_down_local", "codec_up_global", "codec_down_global")


def bytes_of(tree: SimulatedHierarchy) -> dict[str, float]:
    """Mean bytes of a part on each link."""

    def mean(node: str, kind: str) -> float:
        meter = tree.simulation.traffic(node)
        number = sum(count for (_, of_kind, sent), count in meter.num_messages.items() if of_kind == kind and sent)
        return meter.total(kind=kind, sent=True) / number

    return {
        "codec_up_local": mean("eu-0", "UpdatePart"),
        "codec_down_local": mean("eu-server", "ModelPart"),
        "codec_up_global": mean("eu-server", "UpdatePart"),
        "codec_down_global": mean(GLOBAL, "ModelPart"),
    }


def train(config: HierarchyConfig) -> tuple[float, dict[str, float], float]:
    """Relative distance of the final model from the target, mean bytes of parts, and the sum of its values."""
    target = targets(1, SIZES)
    with SimulatedHierarchy(config, {"eu": (1.0, 1.3), "us": (1.0,)}, lambda r, n: Quadratic(target), ZEROS) as tree:
        tree.run()
        assert tree.global_server is not None
        model = tree.global_server.state.model.parameters
        distance = sum(float((model[name] - target[name]).norm()) for name in target)
        total = sum(float(tensor.double().sum()) for tensor in model.values())
        return distance / sum(float(tensor.norm()) for tensor in target.values()), bytes_of(tree), total


@pytest.fixture(scope="module")
def exact() -> tuple[float, dict[str, float], float]:
    return train(CONFIG)


@pytest.mark.parametrize(
    ("codec", "ratio", "distance_max"), [("int8", 3.0, 0.01), ("int4", 4.5, 0.05), ("int2", 6.0, 0.25)]
)
def test_all_links_carry_fewer_bytes_and_the_model_arrives(
    codec: str, ratio: float, distance_max: float, exact: tuple[float, dict[str, float], float]
) -> None:
    distance, num_bytes, total = train(replace(CONFIG, **dict.fromkeys(LINKS, codec)))
    assert distance < distance_max and exact[0] < 0.01
    for link, plain in exact[1].items():
        assert plain / num_bytes[link] > ratio, f"{link}: {plain:.0f} and {num_bytes[link]:.0f} bytes"
    assert total != exact[2], "the codec has been at work: its error is not zero"


@pytest.mark.parametrize("link", LINKS)
def test_each_link_has_a_codec_of_its_own(link: str, exact: tuple[float, dict[str, float], float]) -> None:
    _, num_bytes, _ = train(replace(CONFIG, budget_steps=400, **{link: "int4"}))
    for other, plain in exact[1].items():
        is_smaller = num_bytes[other] < 0.5 * plain
        assert is_smaller == (other == link)


def test_what_a_push_drops_is_owed_to_the_next_also_after_a_restart() -> None:
    config = replace(CONFIG, codec_up_global="int2", updates_per_snapshot=5, budget_steps=800)
    target = targets(1, SIZES)
    with SimulatedHierarchy(config, {"eu": (1.0, 1.3)}, lambda r, n: Quadratic(target), ZEROS) as tree:
        tree.simulation.advance(12.0)

        def residuals() -> list[torch.Tensor]:
            state, store = tree.servers["eu"].state, tree.simulation.world("eu-server").store
            keys = [owed_key(state.counters.num_pushes, index) for index in range(state.model.num_parts)]
            parts = [decode_part(store.read(key) or b"", state.model.parts[n]) for n, key in enumerate(keys)]
            return [tensor for part in parts for tensor in part.values()]

        for name in ("eu-0", "eu-1"):
            tree.simulation.crash(name)
        tree.simulation.advance(2.0)
        before = residuals()
        assert sum(float(tensor.abs().sum()) for tensor in before) > 0
        tree.simulation.crash("eu-server")
        tree.simulation.restart("eu-server")
        tree.simulation.advance(1.0)
        after = residuals()
        assert len(before) == len(after) and all(map(torch.equal, before, after))


WIDE_SIZES = {"a": (300, 400)}


def thin_and_fat(faults: Faults | None = None, **settings: object) -> SimulatedHierarchy:
    """A tree over links of which that of `us` is thin, with all codecs upward chosen by what was measured."""
    config = replace(CONFIG, codec_up_local="auto", codec_up_global="auto", wire_share_max=0.2, budget_steps=600)
    thin, fat = Link(latency_seconds=0.02, bytes_per_second=1e5), Link(latency_seconds=0.02, bytes_per_second=1e8)
    target = targets(1, WIDE_SIZES)
    return SimulatedHierarchy(
        replace(config, **settings),
        {"eu": (1.0,), "us": (1.0,), "asia": (1.0,)},
        lambda region, number: Quadratic(target),
        {name: torch.zeros(size) for name, size in WIDE_SIZES.items()},
        topology=Topology().link("eu", "us", thin).link("eu", "asia", fat),
        faults=faults or Faults(),
    )


def distance(tree: SimulatedHierarchy) -> float:
    """Of its model from the target."""
    assert tree.global_server is not None
    target = targets(1, WIDE_SIZES)["a"]
    return float((tree.global_server.state.model.parameters["a"] - target).norm() / target.norm())


def test_a_thin_uplink_gets_fewer_bits_than_a_fat_one() -> None:
    with thin_and_fat() as tree, thin_and_fat(codec_up_local="raw", codec_up_global="raw") as exact:
        tree.run()
        exact.run()
        last = {name: list(server.codec_push.decisions)[-1] for name, server in tree.servers.items()}
        assert "in int8: int8 is 0.128 MB" in last["us"] and "measured 0.1 MB/s" in last["us"]
        assert "in raw:" in last["asia"]
        notes = [event.detail for event in tree.simulation.trace.of("note")]
        assert any("in raw: no large message has been timed" in note for note in notes)
        assert distance(tree) < distance(exact) + 0.02


def test_a_restarted_server_sends_its_push_in_the_codec_that_it_had_chosen() -> None:
    with thin_and_fat(Faults().crash("us-server", at=25.0, restart_after=0.1), updates_per_snapshot=1000) as tree:
        tree.simulation.advance(24.9)
        before, codec = tree.servers["us"], tree.servers["us"].state.counters.codec_push
        tree.simulation.advance(0.4)
        assert tree.servers["us"] is not before and not tree.servers["us"].codec_push.decisions
        assert tree.servers["us"].state.counters.codec_push == codec != "raw"
        tree.run()
        assert distance(tree) < 0.25
