"""Nodes, links and faults on one virtual clock: the same roles and loops as on real machines, replayed from a seed.

    with Simulation(seed=1, faults=Faults().crash("server", at=5).restart("server", at=8)) as simulation:
        simulation.node("server", boot=lambda world: Host(Echo(), world, "echo"))
        simulation.node("client")
        answer = simulation.run(ask(simulation.world("client")), node="client")

`run` is for synchronous code and may be called again and again; virtual time goes on from where it was.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, TypeVar

from farflung.sim.compute import Speed
from farflung.sim.errors import DeadlinePassed, NothingCanHappen, ProcessDied, SimulationError
from farflung.sim.fabric import Fabric
from farflung.sim.faults import Faults
from farflung.sim.loop import Outside, VirtualLoop
from farflung.sim.machine import Boot, Machine
from farflung.sim.station import MessageEvent, Station
from farflung.sim.topology import Place, Topology
from farflung.sim.trace import Trace
from farflung.sim.waiting import who_waits
from farflung.world.address import PeerId
from farflung.world.doors import TrafficMeter, World

Result = TypeVar("Result")

RUN_SECONDS_MAX = 86_400.0
"""A run without a deadline of its own ends in an error after this much virtual time."""


class Simulation:
    """One simulated swarm. Close it, or use it in `with`, so that no coroutine is left suspended."""

    def __init__(
        self,
        *,
        seed: int = 0,
        topology: Topology | None = None,
        faults: Faults | None = None,
        must_introduce: bool = False,
        keep_trace: bool = True,
        size_of: Callable[[str, int], int] = lambda kind, num_bytes: num_bytes,
    ) -> None:
        """`size_of(kind, num_bytes)`: bytes that a frame counts as, on links and in counters: what it carries may stand
        for something larger."""
        self.seed = seed
        self.trace = Trace(keep=keep_trace)
        self._loop = VirtualLoop()
        self._outside = Outside(self._loop)
        self._fabric = Fabric(
            self._outside,
            topology or Topology(),
            self.trace,
            Random(f"{seed}:network"),
            must_introduce=must_introduce,
            size_of=size_of,
        )
        self._nodes: dict[str, Machine] = {}
        for fault in (faults or Faults()).sentences:
            fault.arrange(self)

    def __enter__(self) -> "Simulation":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        failure = self._end()
        if failure is not None and kind is None:
            raise failure

    def close(self) -> None:
        """Kill every process and let what they had running see it; raises an error that nobody has caught."""
        failure = self._end()
        if failure is not None:
            raise failure

    def _end(self) -> BaseException | None:
        if self._loop.is_closed():
            return None
        self._loop.kill(machine.station.process for machine in self._nodes.values())
        return self._loop.end()

    # Nodes

    def node(
        self,
        name: str,
        *,
        site: str = "site",
        boot: Boot = lambda world: None,
        peer: PeerId | None = None,
        is_dial_only: bool = False,
        is_relay: bool = False,
        slowness: float = 1.0,
        uplink_bytes_per_second: float = float("inf"),
        downlink_bytes_per_second: float = float("inf"),
    ) -> World:
        """Add a node and boot it: `boot(world)` makes its hosts and starts its loops, now and after every restart.

        Its peer id is `peer`, or its name. Returns the world of its first life.
        """
        if name in self._nodes:
            raise ValueError(f"There is already a node {name!r}: give each its own name.")
        place = Place(
            name=name,
            site=site,
            uplink_bytes_per_second=uplink_bytes_per_second,
            downlink_bytes_per_second=downlink_bytes_per_second,
        )
        station = Station(peer or PeerId(name), place, is_dial_only=is_dial_only, is_relay=is_relay)
        self._fabric.stations[station.peer] = station
        self._nodes[name] = Machine(self.seed, self._loop, self._fabric, station, boot, Speed(slowness))
        self._boot(name)
        return self.world(name)

    def _boot(self, name: str) -> None:
        machine = self._nodes[name]
        world = machine.begin_life()
        self._fault(f"{name} boots, life {machine.num_lives}")
        self._fabric.rise(machine.station, is_first=machine.num_lives == 1)
        if self._loop.is_running():
            self._outside.call_in(machine.station.process, machine.boot, world)
            return

        async def boot() -> None:
            machine.boot(world)

        self.run(boot(), node=name)

    def world(self, name: str) -> World:
        """The doors of the node's present life (of its last one, if it is down)."""
        world = self._nodes[name].world
        assert world is not None
        return world

    def is_alive(self, name: str) -> bool:
        """Whether the node's process runs (frozen or not)."""
        return self._nodes[name].station.process.is_alive

    def traffic(self, name: str) -> TrafficMeter:
        """Bytes of the node over all its lives; frames of a relay are counted at their two ends only."""
        return self._nodes[name].station.traffic

    # Running

    def now(self) -> float:
        """Virtual seconds since the beginning."""
        return self._loop.time()

    def run(
        self, coroutine: Coroutine[Any, Any, Result], *, node: str | None = None, deadline: float | None = None
    ) -> Result:
        """Run everything until `coroutine` ends, and return its result. It lives and dies with `node`, if given.

        Raises:
            DeadlinePassed: virtual time passed `deadline` (default: a day from now); it says who waits.
            NothingCanHappen: nobody has anything left to do, and it has not ended.
            ProcessDied: the node crashed.
        """
        try:
            self._loop.check_can_run()
        except SimulationError:
            coroutine.close()
            raise
        context = None if node is None else self._nodes[node].station.process.context.copy()
        task = self._loop.create_task(coroutine, name=f"driver on {node or 'no node'}", context=context)
        deadline = self.now() + RUN_SECONDS_MAX if deadline is None else deadline
        timer = None if math.isinf(deadline) else self._outside.call_at(deadline, self._loop.stop)
        task.add_done_callback(self._ended)
        try:
            self._loop.run_forever()
            if not task.done():
                raise DeadlinePassed(f"not done by {deadline} s of virtual time\n{who_waits(self._loop)}")
        except NothingCanHappen as error:
            raise NothingCanHappen(f"{error}\n{who_waits(self._loop)}") from None
        finally:
            task.remove_done_callback(self._ended)
            task.cancel()
            if timer is not None:
                timer.cancel()
        if task.cancelled() and node is not None:
            raise ProcessDied(f"{node} crashed at {self.now()} s while its driver ran")
        return task.result()

    def _ended(self, _: object) -> None:
        self._loop.stop()

    def advance(self, seconds: float) -> None:
        """Let everything run for that much virtual time."""
        self.run(asyncio.sleep(seconds))

    # Faults: these strike now; `Faults` says when

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Do something to the simulation at a virtual time."""
        self._outside.call_at(time, action)

    def watch(self, watcher: Callable[[MessageEvent], None]) -> None:
        """Be told of every moment of every message."""
        self._fabric.watchers.append(watcher)

    def crash(self, node: str, *, is_silent: bool = False) -> None:
        """End the node's process; with `is_silent` its machine loses power."""
        station = self._nodes[node].station
        if not station.process.is_alive:
            return
        self._fault(f"{node} {'loses power' if is_silent else 'crashes'}")
        self._loop.kill([station.process])
        self._fabric.die(station, is_silent=is_silent)

    def restart(self, node: str) -> None:
        """Boot the node again, with its disk; nothing if it is up."""
        if not self.is_alive(node):
            self._boot(node)

    def freeze(self, node: str) -> None:
        """Stop the node's process without ending it; nothing if it is down."""
        if not self.is_alive(node):
            return
        self._fault(f"{node} freezes")
        self._loop.freeze(self._nodes[node].station.process)
        self._fabric.listen_anew()

    def thaw(self, node: str) -> None:
        """Let a frozen process go on; nothing if it is not frozen."""
        if not self._nodes[node].station.process.is_frozen:
            return
        self._fault(f"{node} thaws")
        self._loop.thaw(self._nodes[node].station.process)
        self._fabric.listen_anew()

    def cut(self, groups: dict[str, int]) -> None:
        """Let nothing pass between sites and nodes of different groups until `heal` of the same dictionary."""
        self._fault(f"cut {groups}")
        self._fabric.cut(groups)

    def heal(self, groups: dict[str, int]) -> None:
        """Undo `cut`."""
        self._fault(f"heal {groups}")
        self._fabric.heal(groups)

    def slow(self, node: str, factor: float) -> None:
        """Multiply how long the node's jobs take."""
        self._fault(f"{node} is {factor:g} times slower")
        self._nodes[node].speed.slowness *= factor

    def lose(self, rate: float) -> None:
        """Add to the share of messages lost beside what the links lose; take away with a negative rate."""
        self._fault(f"loss {rate:+g}")
        self._fabric.chance.loss = round(self._fabric.chance.loss + rate, 12)

    def duplicate(self, rate: float) -> None:
        """Add to the share of messages that arrive twice beside what the links do; take away with a negative rate."""
        self._fault(f"duplication {rate:+g}")
        self._fabric.chance.duplication = round(self._fabric.chance.duplication + rate, 12)

    def _fault(self, sentence: str) -> None:
        self.trace.add(self._loop.time(), "fault", "", sentence)
