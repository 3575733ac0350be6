"""One lane of a run on one node: the node's membership, the coordinator if it leads, and the engine's worker."""

import asyncio

import msgspec

from farflung.apps.low_communication.loop import LoopLearner
from farflung.apps.low_communication.meeting import Offer, announce, find_coordinator, why_over
from farflung.apps.low_communication.memory import ReplicaMemory
from farflung.apps.wiring import Connection
from farflung.systems.desync.config import DesyncConfig
from farflung.systems.desync.messages import COORDINATOR
from farflung.systems.desync.round import Coordinator
from farflung.systems.desync.worker import Worker, WorkerReport
from farflung.world.errors import FarflungError
from farflung.world.host import Host

COORDINATOR_SECONDS_MAX = 30.0


class RoundsOver(FarflungError):
    """The sites that this one trained with are gone; agree anew with those that are there."""


class PassingStore:
    """Implements `world.doors.Store` in memory: what this coordinator decided ends with it, and sites agree anew."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def read(self, key: str) -> bytes | None:
        return self._values.get(key)

    def write(self, key: str, value: bytes) -> None:
        self._values[key] = value

    def delete(self, key: str) -> None:
        self._values.pop(key, None)

    def keys(self, prefix: str = "") -> list[str]:
        return sorted(key for key in self._values if key.startswith(prefix))


class LaneSession:
    """The part of one lane in a run, from an agreement to the next. Made on a program's thread."""

    def __init__(
        self,
        connection: Connection,
        offer: Offer,
        learner: LoopLearner,
        config: DesyncConfig,
        region: str,
        sites_min: int,
    ) -> None:
        """`offer`: with the lead that was agreed on; `region`: under which the ring is planned."""
        self.learner = learner
        self._connection = connection
        self._offer = offer
        self._config = config
        self._region = region
        self._sites_min = sites_min
        self._coordinator: Host | None = None
        self._worker: Worker | None = None
        self._task: asyncio.Task[WorkerReport] | None = None
        self._is_waited_for = True

    def start(self, memory: ReplicaMemory | None) -> None:
        """Find or become the coordinator, and let the engine's worker join.

        `memory`: what the replica remembers of rounds before.

        Raises:
            NobodyThere: the lead is gone again.
            ValueError: the memory is of something else.
        """
        self._connection.bridge.run(self._start(memory))

    async def _start(self, memory: ReplicaMemory | None) -> None:
        node = self._connection.node
        if self._offer.lead == self._offer.site:
            self._coordinator = node.host(Coordinator(self._config, PassingStore()), COORDINATOR)
            self._offer = msgspec.structs.replace(self._offer, is_coordinating=True)
        announce(node, self._offer)
        address = await find_coordinator(node, self._offer, COORDINATOR_SECONDS_MAX)
        self._worker = Worker(node.world, self.learner, self._config, address, site=self._region)
        if memory is not None:
            memory.restore(self._worker.replica)
        self._task = asyncio.create_task(self._worker.run(), name="low-communication")

    @property
    def lane(self) -> int:
        """Number of the lane."""
        return self.learner.lane.number

    @property
    def num_rounds(self) -> int:
        """Averages that this session has taken part in."""
        return 0 if self._worker is None else len(self._worker.report.exchanges)

    def memory(self) -> dict[int, ReplicaMemory]:
        """What the lane's replica remembers, by lane, for the next session or a checkpoint; only while it is idle."""
        return {} if self._worker is None else {self.lane: ReplicaMemory.of(self._worker.replica)}

    def advance(self, num_steps: int) -> None:
        """The loop has made steps."""
        self._is_waited_for = self.learner.advance(num_steps)

    def wait(self) -> None:
        """Wait until the engine wants the loop's next steps.

        Raises:
            RoundsOver: too few are left to average with.
            FarflungError: the engine's worker has failed.
        """
        if self._is_waited_for:
            self.learner.wait(self._check)
            self._is_waited_for = False

    def _check(self) -> None:
        assert self._task is not None
        if self._task.done():
            error = self._task.exception()
            if error is None:
                raise RoundsOver("the run is over")
            if isinstance(error, FarflungError):
                raise error
            raise FarflungError(f"the averaging of this site has failed: {error!r}") from error
        reason = self._connection.bridge.run(self._why_over())
        if reason is not None:
            raise RoundsOver(reason)

    async def _why_over(self) -> str | None:
        return why_over(self._connection.node, self._offer, self._sites_min)

    def close(self) -> None:
        """Take no further part; a round that is under way is given up."""
        self.learner.leave()
        self._connection.bridge.run(self._close())

    async def _close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            if not self._task.cancelled():
                self._task.exception()  # that the loop has left, or what `wait` has raised already
        self._end_coordinator()
        await self._idle()

    async def _idle(self) -> None:
        """Until the compute thread is done with what the worker gave it."""
        idle = asyncio.Event()
        self._connection.node.world.compute.submit(lambda result: idle.set(), int, seconds=0.0)
        await idle.wait()

    def _end_coordinator(self) -> None:
        if self._coordinator is not None:
            self._coordinator.stop()
            self._connection.node.hosts.remove(self._coordinator)
            self._coordinator = None
