"""The asynchronous methods as seats: a global parameter server, one local one per region, and their workers."""

import asyncio
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch

from farflung.apps.pretrain.data import shards_of_region
from farflung.apps.pretrain.learner import Learner, RevealingCompute, worker_report
from farflung.apps.pretrain.materials import Materials
from farflung.apps.pretrain.run_file import RunFile
from farflung.apps.runs.messages import SeatReport
from farflung.apps.runs.part import Part, Sitting, Stopped, sent_bytes, taken
from farflung.apps.runs.seats import Seat, worker_seats
from farflung.learn.parameters import Tensors, named_parameters
from farflung.learn.stream import Shard
from farflung.runtime.store import FileStore
from farflung.systems.hierarchy.config import HierarchyConfig
from farflung.systems.hierarchy.durable import PREFIX
from farflung.systems.hierarchy.global_server import GlobalServer
from farflung.systems.hierarchy.local_server import LocalServer
from farflung.systems.hierarchy.messages import ACTOR
from farflung.systems.hierarchy.worker import Worker
from farflung.world.address import Address
from farflung.world.host import Host
from farflung.world.nursery import open_nursery

TREE = "halos"
"""The algorithm with two levels of servers; the others have one local server."""


def config_of(run: RunFile) -> HierarchyConfig:
    """The engine's settings for a run."""
    return run.algorithm.hierarchy_config(run.num_steps, run.num_shards)


class HierarchyEngine:
    """See `runs.engine.Engine`."""

    def seats(self, run: RunFile) -> list[Seat]:
        first = run.regions[0]
        if run.algorithm.name != TREE:
            servers = [Seat(index=0, kind="local-server", region=first.name)]
        else:
            servers = [Seat(index=0, kind="global-server", region=first.name)]
            servers += [
                Seat(index=1 + place, kind="local-server", region=region.name, is_remote=region.is_remote)
                for place, region in enumerate(run.regions)
            ]
        return [*servers, *worker_seats(run.regions, len(servers))]

    def needs(self, seat: Seat, seats: tuple[Seat, ...]) -> list[int]:
        server = server_of(seat, seats)
        return [] if server is None else [server.index]

    def part(self, sitting: Sitting[RunFile], materials: Materials) -> Part:
        if sitting.seat.kind == "worker":
            return WorkerPart(sitting, materials)
        return ServerPart(sitting, named_parameters(materials.model()))

    def result_seats(self, seats: tuple[Seat, ...]) -> list[Seat]:
        return [seats[0]]

    def prepare_resume(self, homes: dict[int, Path], seats: tuple[Seat, ...]) -> bool:
        """Servers are durable by themselves, and workers take up whatever those have."""
        root = homes.get(seats[0].index)
        return root is None or bool(FileStore(root / "store").keys(PREFIX))


def server_of(seat: Seat, seats: tuple[Seat, ...]) -> Seat | None:
    """Whom a seat speaks to: a worker to the local server of its region (or the only one), that to the global one."""
    if seat.kind == "global-server":
        return None
    if seat.kind == "local-server":
        return next((other for other in seats if other.kind == "global-server"), None)
    servers = [other for other in seats if other.kind == "local-server"]
    return next((other for other in servers if other.region == seat.region), servers[0])


class ServerPart:
    """A parameter server."""

    def __init__(self, sitting: Sitting[RunFile], parameters: Mapping[str, torch.Tensor]) -> None:
        self._sitting = sitting
        self._stopped = Stopped()
        world, run, seat = sitting.world, sitting.run, sitting.seat
        config = config_of(run)
        if seat.kind == "global-server":
            self.server: GlobalServer | LocalServer = GlobalServer.open(world, config, parameters)
        else:
            above = server_of(seat, sitting.seats)
            is_only = above is None
            regions = [region.name for region in run.regions] if is_only else [seat.region]
            shards = [shards_of_region(run.regions, region, config.num_shards) for region in regions]
            self.server = LocalServer.open(
                world,
                config,
                parameters,
                name=seat.name,
                above=None if above is None else Address(sitting.peers[above.index], ACTOR),
                shards=sorted(itertools.chain(*shards)),
            )
        self._host = Host(self.server, world, ACTOR, self._stopped.fail)

    async def run(self) -> None:
        await self._stopped.wait()

    def stop(self) -> None:
        self._stopped.set()

    def report(self) -> SeatReport:
        server = self.server.report()
        decisions = taken(self.server.codec_push.decisions) if isinstance(self.server, LocalServer) else ()
        return SeatReport(
            seat=self._sitting.seat.index,
            staleness=server.mean_staleness,
            sent=sent_bytes(self._sitting.world),
            counters=self._counters(),
            decisions=decisions,
        )

    def _counters(self) -> dict[str, int]:
        """Updates applied, in all and by client; of a local server, its pushes and those whose answer is merged."""
        report, counters = self.server.report(), self.server.state.counters
        clients = {f"applied/{name}": client.num_updates for name, client in report.clients.items()}
        pushes = {"pushed": counters.num_pushes, "merged": counters.merged_push} if counters.has_model else {}
        return {"applied": report.version, **clients, **pushes}

    def result(self) -> Tensors:
        return self.server.state.model.parameters

    def close(self) -> None:
        self._host.stop()


@dataclass(slots=True)
class DealtData:
    """The data of a worker as its server deals them."""

    learner: Learner
    materials: Materials
    seat: Seat

    @property
    def cursor(self) -> dict[str, int]:
        """Where they go on."""
        return self.learner.cursor

    def assign(self, shard: int, cursor: Mapping[str, int]) -> None:
        """Draw from that shard alone."""
        num_shards = config_of(self.materials.run).num_shards
        stream = self.materials.stream(self.seat, Shard(shard, num_shards))
        if cursor:
            stream.seek(cursor)
        self.learner.trainer.stream = stream


class WorkerPart:
    """Local steps and updates."""

    def __init__(self, sitting: Sitting[RunFile], materials: Materials) -> None:
        self._sitting = sitting
        self._learner = Learner(materials.trainer(sitting.seat))
        self._ended = asyncio.Event()
        server = server_of(sitting.seat, sitting.seats)
        assert server is not None
        self._worker = Worker(
            replace(sitting.world, compute=RevealingCompute(sitting.world.compute, self._learner)),
            config_of(sitting.run),
            self._learner,
            name=sitting.seat.name,
            server=Address(sitting.peers[server.index], ACTOR),
            data=DealtData(self._learner, materials, sitting.seat),
            memory=self._learner.trainer.optimizer,
            seconds_per_step=sitting.run.simulation.step_seconds,
        )

    async def run(self) -> None:
        async def work() -> None:
            await self._worker.run()
            self._ended.set()

        async with open_nursery() as nursery:
            working = nursery.start(work(), name="worker")
            await self._ended.wait()
            working.cancel()

    def stop(self) -> None:
        self._ended.set()  # what is needed to go on has been kept with the newest update

    def report(self) -> SeatReport:
        report = self._worker.report()
        return msgspec.structs.replace(
            worker_report(self._sitting, self._learner, report.seconds_waiting, taken(self._worker.codec.decisions)),
            counters={"acknowledged": report.newest_update},
        )

    def result(self) -> Tensors:
        return self._learner.parameters

    def close(self) -> None:
        self._ended.set()
