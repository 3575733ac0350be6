"""Machines that come and go: a run of 20 real processes over thin, long links, of which half are replaced on the way.

    python -m bench.onebyte_storm [--quick] [--json FILE]

Each measurer is a process with a key and a node of its own behind a link of its own (50 kbit/s, 300 ms there and back,
shaped as the links of a run file are). In the storm half of them are killed at moments spread over the run, and in the
place of each a stranger joins, who has nothing but a ticket. All share the cores of one machine, so the model is small:
what is shown is the conversation. Processes fork from one that has loaded torch, as a machine has before it joins.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.report import Report, bench_arguments
from farflung.apps.runs.gateways import open_gateways
from farflung.apps.runs.sites import LinkSettings
from farflung.runtime.node import RealNode, open_node
from farflung.systems.onebyte.config import Group, RoundsConfig
from farflung.systems.onebyte.header import Header, Schedule
from farflung.systems.onebyte.held_journal import HeldJournal
from farflung.systems.onebyte.learner import ModelLearner
from farflung.systems.onebyte.messages import ACTOR
from farflung.systems.onebyte.objective import Batch, NextTokenLoss
from farflung.systems.onebyte.records import Round
from farflung.systems.onebyte.sequencer import Sequencer
from farflung.systems.onebyte.tensors import choose_tensors
from farflung.systems.onebyte.worker import Worker
from farflung.wire.identity import Identity
from farflung.world.address import PeerId
from farflung.world.host import Host

HUB = "hub"
RUN_KEY = Identity(bytes([5]) * 32)
BANDWIDTH_MBIT = 0.05
LATENCY_MS = 150.0
VOCABULARY = 64
SLOTS_PER_MACHINE = 8
LOOK_SECONDS = 0.05
WAIT_SECONDS = 600.0
SLOWER_MAX = 1.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Of one comparison."""

    num_machines: int
    num_rounds: int

    @property
    def num_slots(self) -> int:
        return self.num_machines * SLOTS_PER_MACHINE


@dataclass(frozen=True, slots=True)
class Seen:
    """What one run was like."""

    seconds: float
    """From the first committed round to the end of the journal."""
    states: tuple[str, ...]
    """Hash of the sums of everybody who was there at the end."""
    state_of_replay: str
    num_participants: int
    num_entries: int
    num_bytes: float
    """That a machine received and sent, on average over those at the end."""


def small_model() -> LlamaForCausalLM:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_attention_heads=2)
    config.num_hidden_layers = 2
    return LlamaForCausalLM(config).eval()


def header_of(size: Size) -> Header:
    return Header(
        run=bytes(range(16)),
        base=bytes(32),
        base_name="bench",
        dtype="float32",
        tensors=choose_tensors(small_model(), ["all"]),
        epsilon=2e-3,
        exponent=24,
        schedule=Schedule(rate=100),
        num_slots=size.num_slots,
        sequencer=RUN_KEY.public_key,
    )


def config_of(size: Size) -> RoundsConfig:
    # A round does not wait for the slots of a machine that is gone: they come late, or not at all.
    return RoundsConfig(
        num_rounds=size.num_rounds, slots_per_lease_min=SLOTS_PER_MACHINE, quorum=0.9, reissue_seconds=3.0
    )


def batch_of(round_number: int) -> Batch:
    generator = torch.Generator().manual_seed(round_number)
    return {"input_ids": (torch.randint(VOCABULARY, (2, 1), generator=generator) + 3 * torch.arange(8)) % VOCABULARY}


def measure(size: Size, ticket: str, sequencer: str, home: str, variables: Mapping[str, str], told: Connection) -> None:
    """A measurer's process: it tells that it has joined, and at the end its state and its bytes."""
    os.environ.update(variables)

    async def work() -> None:
        node = await open_node(ticket=ticket, home=Path(home), is_dial_only=True)
        learner = ModelLearner(header_of(size), small_model(), NextTokenLoss(), batch_of, num_directions=8)
        worker = Worker(
            node.world,
            header_of(size),
            config_of(size),
            Group(candidates=(PeerId(sequencer),)),
            node.identity,
            learner,
            name=Path(home).name,
        )
        await worker.run()
        traffic = node.world.traffic
        told.send((learner.digest().hex(), traffic.total(sent=True) + traffic.total(sent=False)))
        await node.close()

    asyncio.run(work())


@dataclass(slots=True)
class Storm:
    """One run: the hub lives in this process, which kills and starts the others."""

    size: Size
    folder: Path
    variables: Mapping[str, Mapping[str, str]]
    """Of the processes of each region."""
    host: str
    machines: dict[str, tuple[BaseProcess, Connection]] = field(default_factory=dict)
    num_started: int = 0

    async def run(self, num_replaced: int) -> Seen:
        node = await open_node(new_swarm="storm", home=self.folder / "hub", host=self.host)
        group = Group(candidates=(PeerId(node.identity.peer),))
        sequencer = Sequencer.open(node.world, header_of(self.size), config_of(self.size), group, RUN_KEY)
        Host(sequencer, node.world, ACTOR)
        regions = [region for region in self.variables if region != HUB]
        try:
            for region in regions:
                self._start(node, region)
            await self._until(sequencer, 1)
            began_at = time.monotonic()
            await self._replace(sequencer, node, regions[:num_replaced])
            await self._until(sequencer, self.size.num_rounds, is_closed=True)
            seconds = time.monotonic() - began_at
            told = [await self._last_words(*machine) for machine in self.machines.values()]
        finally:
            self._end()
            await node.close()
        return self._seen(sequencer, seconds, told)

    def _start(self, node: RealNode, region: str) -> None:
        name = f"{region}-{self.num_started}"
        self.num_started += 1
        context = multiprocessing.get_context("forkserver")
        here, there = context.Pipe(duplex=False)
        home = str(self.folder / name)
        given = (self.size, node.ticket.text(), node.identity.peer, home, self.variables[region], there)
        process = context.Process(target=measure, args=given, name=name)
        process.start()
        there.close()
        self.machines[region] = process, here

    async def _replace(self, sequencer: Sequencer, node: RealNode, regions: Sequence[str]) -> None:
        """Spread over the middle of the run, killed as they are: no goodbye."""
        order = random.Random(0).sample(list(regions), len(regions))
        for number, region in enumerate(order):
            share = 0.1 + 0.7 * number / len(order)
            await self._until(sequencer, max(1, round(share * self.size.num_rounds)))
            self.machines[region][0].kill()
            self._start(node, region)

    async def _until(self, sequencer: Sequencer, num_rounds: int, *, is_closed: bool = False) -> None:
        give_up_at = time.monotonic() + WAIT_SECONDS
        while (ledger := sequencer.ledger) is None or ledger.num_rounds < num_rounds or is_closed > ledger.is_closed:
            if time.monotonic() > give_up_at:
                raise TimeoutError("the run does not go on")
            await asyncio.sleep(LOOK_SECONDS)

    async def _last_words(self, process: BaseProcess, told: Connection) -> tuple[str, float]:
        give_up_at = time.monotonic() + WAIT_SECONDS
        while not told.poll():
            if time.monotonic() > give_up_at or not process.is_alive():
                raise TimeoutError(f"{process.name} has ended without a word")
            await asyncio.sleep(LOOK_SECONDS)
        return told.recv()

    def _end(self) -> None:
        for process, _ in self.machines.values():
            process.join(timeout=10)
            process.kill()

    def _seen(self, sequencer: Sequencer, seconds: float, told: Sequence[tuple[str, float]]) -> Seen:
        assert sequencer.ledger is not None
        rounds = [record for record in sequencer.records if isinstance(record, Round)]
        replica = ModelLearner(header_of(self.size), small_model(), NextTokenLoss(), batch_of)
        held = HeldJournal(header_of(self.size))
        for content in sequencer.replica.log.contents[: sequencer.replica.num_committed]:
            replica.add(held.take(content))
        return Seen(
            seconds=seconds,
            states=tuple(state for state, _ in told),
            state_of_replay=replica.digest().hex(),
            num_participants=len(sequencer.ledger.participants),
            num_entries=sum(len(record.codes) for record in rounds),
            num_bytes=sum(num_bytes for _, num_bytes in told) / len(told),
        )


def load_once() -> None:
    """Start the process that measurers fork from."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["bench.onebyte_storm"])
    forkserver.ensure_running()


def run_once(size: Size, num_replaced: int) -> Seen:
    """A hub, and a region with a link of its own for each measurer."""
    regions = [HUB, *(f"machine-{number}" for number in range(size.num_machines))]
    links = [
        LinkSettings(between=(HUB, region), bandwidth_mbit=BANDWIDTH_MBIT, latency_ms=LATENCY_MS)
        for region in regions[1:]
    ]
    with tempfile.TemporaryDirectory() as folder, open_gateways(regions, links, Path(folder)) as ways:
        variables = {region: ways.variables(region) for region in regions}
        storm = Storm(size, Path(folder), variables, ways.hosts[HUB])
        return asyncio.run(storm.run(num_replaced))


def main(arguments: argparse.Namespace) -> int:
    size = Size(num_machines=6, num_rounds=20) if arguments.quick else Size(num_machines=20, num_rounds=40)
    load_once()
    num_replaced = size.num_machines // 2
    report = Report(
        "onebyte_storm",
        {"machines": size.num_machines, "replaced": num_replaced, "rounds": size.num_rounds, "slots": size.num_slots},
    )
    calm, storm = run_once(size, 0), run_once(size, num_replaced)
    report.table(
        "The run, calm and in the storm",
        ("what", "calm", "storm"),
        [
            ("seconds", calm.seconds, storm.seconds),
            ("machines that have measured", calm.num_participants, storm.num_participants),
            ("entries", calm.num_entries, storm.num_entries),
            ("bytes of a machine, both ways", calm.num_bytes, storm.num_bytes),
        ],
    )
    for name, seen in (("calm", calm), ("storm", storm)):
        is_same = {*seen.states} == {seen.state_of_replay} and len(seen.states) == size.num_machines
        report.claim(
            f"all {size.num_machines} hold the weights of the journal's replay, {name}", "yes", is_same, is_same
        )
    per_round = calm.seconds / (size.num_rounds - 1)
    is_far = per_round >= 2 * LATENCY_MS / 1000
    report.claim("seconds of a calm round, which takes a way there and back", ">= 0.3", f"{per_round:.2f}", is_far)
    came = storm.num_participants == size.num_machines + num_replaced
    report.claim("machines that came have measured too", f"{num_replaced}", f"{storm.num_participants} in all", came)
    ratio = storm.seconds / calm.seconds
    report.claim("wall-clock of the storm over the calm run", f"<= {SLOWER_MAX}", f"{ratio:.2f}", ratio <= SLOWER_MAX)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main(bench_arguments(__doc__ or "").parse_args()))
