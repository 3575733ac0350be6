"""One tree of parameter servers with faults, checked: `python -m tests.chaos.hierarchy_scenario SEED`.

The learners count: every update adds exactly 1 to a value of its worker's own, and the servers' rules add it to their
models unchanged. So a model says how often each update was applied.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import torch

from farflung.learn.parameters import Tensors
from farflung.sim.faults import Faults, nth
from farflung.sim.station import MessageEvent
from farflung.systems.hierarchy.config import HierarchyConfig
from farflung.systems.hierarchy.merge import decode_part
from farflung.systems.hierarchy.messages import ModelPart, UpdatePart, UpdateTaken
from farflung.systems.hierarchy.records import JOURNAL, Committed, decode_record
from tests.hierarchies import GLOBAL, Descended, SimulatedHierarchy

REGIONS = {"eu": (1.0, 1.7), "us": (1.0, 2.3)}
NAMES = [f"{region}-{number}" for region, workers in REGIONS.items() for number in range(len(workers))]
SERVERS = ["eu-server", "us-server"]
NUM_VALUES = 200
STEPS_PER_UPDATE = 5
FAULTS_UNTIL = 40.0


class Counting:
    """Adds 1 to one value in each run, whatever the steps."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.parameters: Tensors = {"values": torch.zeros(NUM_VALUES)}

    def run(self, num_steps: int, progress_of_step: Callable[[int], float]) -> Descended:
        self.parameters["values"][self.index] += 1.0
        return Descended(0.5, num_steps, num_steps)


def place(name: str) -> int:
    """The value that a worker counts in; those of different workers are in different parts."""
    return 60 * NAMES.index(name)


@dataclass
class Witness:
    """What was said on the wire."""

    pushes: dict[tuple[str, int], dict[int, bytes]] = field(default_factory=dict[tuple[str, int], dict[int, bytes]])
    """By region and number: the parts of a push."""
    taken: dict[tuple[str, str, int, int], None] = field(default_factory=dict[tuple[str, str, int, int], None])
    """(server, client, lease, sequence) of every acknowledgement that arrived."""
    versions: dict[str, int] = field(default_factory=dict[str, int])
    dispatches: dict[str, int] = field(default_factory=dict[str, int])

    def see(self, event: MessageEvent) -> None:
        match event.message:
            case UpdatePart() as part if event.target == GLOBAL and event.phase == "sent":
                parts = self.pushes.setdefault((part.name, part.sequence), {})
                before = parts.setdefault(part.index, bytes(part.slices))
                assert before == bytes(part.slices), "a push that is sent again must be the same"
            case UpdateTaken() as taken if event.phase == "delivered":
                self.taken[event.source, taken.name, taken.lease, taken.sequence] = None
            case ModelPart() as part if event.phase == "sent":
                if part.dispatch > self.dispatches.get(event.source, 0):
                    assert part.header.version >= self.versions.get(event.source, 0), "versions only grow"
                    self.dispatches[event.source] = part.dispatch
                    self.versions[event.source] = part.header.version
            case _:
                pass


def make(seed: int, faults: Faults) -> SimulatedHierarchy:
    """The tree; seeds differ in whether states are saved, and in where models wait."""
    config = HierarchyConfig(
        budget_steps=900,
        num_local_steps=STEPS_PER_UPDATE,
        is_speed_scaled=False,
        local_learning_rate=1.0,
        local_momentum=0.0,
        local_delay=1,
        global_learning_rate=1.0,
        global_momentum=0.0,
        global_delay=1,
        merge_weight=0.0,
        updates_per_push=3,
        values_per_part=64,
        num_parts_ahead=2,
        updates_per_snapshot=10_000 if seed % 2 else 7,
        replay_bytes_max=3000 if seed % 4 == 2 else 1 << 30,
        resident_bytes_max=(0, 1 << 20, 6 * NUM_VALUES)[seed % 3],
        ask_again_seconds=1.0,
        ask_again_seconds_max=4.0,
        codec_down_local="int8" if seed % 4 == 3 else "raw",
        codec_down_global="int4" if seed % 8 > 4 else "raw",
    )
    return SimulatedHierarchy(
        config,
        REGIONS,
        lambda region, number: Counting(place(f"{region}-{number}")),
        {"values": torch.zeros(NUM_VALUES)},
        seconds_per_step=0.2,
        seed=seed,
        faults=faults,
    )


def random_faults(seed: int) -> Faults:
    """Crashes, power losses, freezes, partitions, loss and duplicates, many of the last two in every third seed; and on
    both levels a server that dies when an update is durable and its acknowledgement is about to leave."""
    loss, duplicates = (0.03, 0.05) if seed % 3 else (0.2, 0.3)
    nodes = [*NAMES, *SERVERS, *SERVERS, GLOBAL, GLOBAL]
    faults = Faults.random(seed, nodes, until=FAULTS_UNTIL, num_faults=8, loss=loss, sites=sorted(REGIONS))
    faults = faults.duplicate(duplicates, during=(0, FAULTS_UNTIL))
    random = Random(f"{seed}:acknowledgements")
    for server, number_max in ((random.choice(SERVERS), 40), (GLOBAL, 8)):
        when = nth("UpdateTaken", random.randint(1, number_max), "send", source=server)
        faults = faults.crash(server, when=when, restart_after=random.uniform(0.5, 3.0))
    return faults


def run(seed: int, faults: Faults | None = None) -> tuple[str, int, int]:
    """Let it run to its end and check everything; returns the trace's hash, the versions and the faults."""
    torch.set_num_threads(1)
    with make(seed, random_faults(seed) if faults is None else faults) as tree:
        witness = Witness()
        tree.simulation.watch(witness.see)
        tree.run(deadline=600.0)
        tree.simulation.advance(10.0)
        check(tree, witness, seed)
        version = sum(server.report().version for server in tree.servers.values())
        trace = tree.simulation.trace
        return trace.trace_hash, version, sum(1 for _ in trace.of("fault"))


def check(tree: SimulatedHierarchy, witness: Witness, seed: int) -> None:
    """No acknowledged update is lost or applied twice, staleness is right, and the counts add up."""
    assert tree.global_server is not None
    for region, server in tree.servers.items():
        report, values = server.report(), server.state.model.parameters["values"]
        for name, client in report.clients.items():
            # Models that travel as differences are not exact, so that a worker adds 1 only within rounding.
            assert abs(float(values[place(name)]) - client.num_updates) < 1e-3, f"{name} was applied so often"
            assert client.num_steps == STEPS_PER_UPDATE * client.num_updates
            lives = [worker.report() for worker in tree.lives if worker.name == name]
            known = sum(life.num_updates for life in lives)
            assert known <= client.num_updates <= known + len(lives) - 1, (
                "an update is counted once, and a death hides one at most"
            )
            assert lives[-1].newest_update == client.num_updates, "what is acknowledged is applied, over all lives"
        assert sum(report.staleness.values()) == report.version == sum(c.num_updates for c in report.clients.values())
        num_steps = tree.global_server.report().clients[region].num_steps
        assert num_steps == server.state.counters.merged_steps, "the steps of a push are credited once"
        if seed % 2:
            check_journal(tree, witness, f"{region}-server", report.staleness)
    check_pushes(tree, witness)


def check_journal(tree: SimulatedHierarchy, witness: Witness, node: str, staleness: dict[int, int]) -> None:
    """The journal, which such seeds never shorten, has all that was acknowledged, once, and gives the staleness."""
    journal = tree.simulation.world(node).journal(JOURNAL)
    records = [record for record in map(decode_record, journal.records()) if isinstance(record, Committed)]
    committed = [(node, record.name, record.lease, record.sequence) for record in records]
    assert len(set(committed)) == len(committed), "an update is committed once"
    lost = [taken for taken in witness.taken if taken[0] == node and taken not in committed]
    assert not lost, f"acknowledged, and not in the journal: {lost}"
    expected: dict[int, int] = {}
    for version, record in enumerate(records):
        late = version - record.header.base_version
        expected[late] = expected.get(late, 0) + 1
    assert staleness == dict(sorted(expected.items())), "staleness is counted as the journal has it"


def check_pushes(tree: SimulatedHierarchy, witness: Witness) -> None:
    """The global model is the sum of all pushes, each once."""
    assert tree.global_server is not None
    model = tree.global_server.state.model
    total = torch.zeros(NUM_VALUES)
    num_pushes = sum(client.num_updates for client in tree.global_server.report().clients.values())
    for parts in witness.pushes.values():
        assert len(parts) == model.num_parts
        for index, data in parts.items():
            (plan,) = model.parts[index]
            total[plan.offset : plan.offset + plan.length] -= decode_part(data, model.parts[index])["values"]
    assert len(witness.pushes) == num_pushes > 5
    assert torch.allclose(total, model.parameters["values"], rtol=0, atol=1e-3), "each push is applied once"
    check_references(tree)


def check_references(tree: SimulatedHierarchy) -> None:
    """Where models travel as differences, a client holds what its server believes that it holds, to the last bit."""
    if tree.config.codec_down_local != "raw":
        for region, server in tree.servers.items():
            for name, session in server._sessions.items():
                worker = tree.workers[name]
                if session.reference == worker._uplink.held and session.held:
                    held = [
                        decode_part(session.held[index], part)["values"] for index, part in enumerate(worker._parts)
                    ]
                    assert torch.equal(torch.cat(held), worker._start["values"]), (region, name)


if __name__ == "__main__":
    sys.stdout.write(" | ".join(map(str, run(int(sys.argv[1])))) + "\n")
