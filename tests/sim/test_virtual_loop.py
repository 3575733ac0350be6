"""The virtual loop: time jumps, order is kept, nothing real is reached, and a hang says who waits for what."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from farflung.sim import Faults, Simulation
from farflung.sim.errors import DeadlinePassed, NothingCanHappen, NotSimulated, SimulationError, TimeStandsStill
from farflung.world.doors import Failed, World
from farflung.world.host import Host
from farflung.world.mailbox import Mailbox
from farflung.world.nursery import open_nursery

ROOT = Path(__file__).resolve().parents[2]


def test_time_jumps_to_the_next_timer() -> None:
    with Simulation() as simulation:
        simulation.run(asyncio.sleep(3600.0))
        assert simulation.now() == 3600.0
        assert simulation.run(asyncio.sleep(0.5, "result")) == "result"
        assert simulation.now() == 3600.5


def test_timers_of_one_moment_fire_in_the_order_in_which_they_were_set() -> None:
    log: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for number in range(100):
            loop.call_at(1.0, log.append, number)
        await asyncio.sleep(2.0)

    with Simulation() as simulation:
        simulation.run(main())
    assert log == list(range(100))


def test_timeouts_queues_and_nurseries_work_as_on_a_real_loop() -> None:
    async def main() -> float:
        queue: asyncio.Queue[int] = asyncio.Queue()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get(), 5.0)
        with pytest.raises(LookupError):
            async with open_nursery() as nursery:
                nursery.start(asyncio.sleep(100), name="sleeper")
                await asyncio.sleep(1.0)
                raise LookupError
        async with asyncio.timeout(2.0):
            await asyncio.sleep(1.5)
        return asyncio.get_running_loop().time()

    with Simulation() as simulation:
        assert simulation.run(main()) == pytest.approx(7.5)


@pytest.mark.parametrize(
    "reach",
    [
        lambda loop: asyncio.to_thread(threading.get_ident),
        lambda loop: loop.run_in_executor(None, threading.get_ident),
        lambda loop: asyncio.open_connection("127.0.0.1", 1),
        lambda loop: asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0),
        lambda loop: asyncio.create_subprocess_exec("true"),
        lambda loop: loop.getaddrinfo("localhost", 1),
        lambda loop: loop.call_soon_threadsafe(print),
        lambda loop: loop.add_signal_handler(2, print),
    ],
)
def test_threads_sockets_and_processes_are_refused(reach: Callable[[asyncio.AbstractEventLoop], Any]) -> None:
    async def main() -> None:
        await reach(asyncio.get_running_loop())

    with Simulation() as simulation, pytest.raises(NotSimulated, match="outside the simulation"):
        simulation.run(main())


def test_a_hang_names_who_waits_for_what() -> None:
    async def wait_for_the_impossible(world: World) -> None:
        with Mailbox(world, "deaf") as mailbox:
            await asyncio.shield(asyncio.get_running_loop().create_future())
            await mailbox.receive(1.0)

    with Simulation() as simulation:
        world = simulation.node("lonely")
        with pytest.raises(NothingCanHappen, match=r"driver on lonely waits at wait_for_the_impossible \(.*\.py:\d+\)"):
            simulation.run(wait_for_the_impossible(world), node="lonely", deadline=float("inf"))


def test_a_deadline_names_who_waits_for_what() -> None:
    with Simulation() as simulation:
        with pytest.raises(DeadlinePassed, match="driver on no node waits at sleep"):
            simulation.run(asyncio.sleep(100.0), deadline=10.0)
        assert simulation.now() == 10.0
        simulation.advance(1.0)


def test_callbacks_without_end_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farflung.sim.loop.CALLBACKS_PER_MOMENT_MAX", 1000)

    async def main() -> None:
        def again() -> None:
            asyncio.get_running_loop().call_soon(again)

        again()
        await asyncio.sleep(1.0)

    with pytest.raises(TimeStandsStill, match="callbacks at"), Simulation() as simulation:
        simulation.run(main())


def test_an_error_in_a_callback_ends_the_run_instead_of_going_to_a_log() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_later(1.0, lambda: 1 // 0)
        await asyncio.sleep(10.0)

    with Simulation() as simulation, pytest.raises(ZeroDivisionError):
        simulation.run(main())


def test_running_inside_the_simulation_or_after_its_end_is_refused() -> None:
    with Simulation() as simulation:

        async def main() -> None:
            inner = asyncio.sleep(1.0)
            try:
                simulation.run(inner)
            finally:
                inner.close()

        with pytest.raises(SimulationError, match="await instead"):
            simulation.run(main())
    late = asyncio.sleep(1.0)
    with pytest.raises(SimulationError, match="was closed"):
        simulation.run(late)
    late.close()


def test_a_device_runs_jobs_one_after_another_and_hands_errors_back() -> None:
    log: list[tuple[object, float]] = []

    with Simulation() as simulation:
        world = simulation.node("worker", slowness=2.0)

        async def main() -> None:
            for seconds in (1.0, 0.5):
                world.compute.submit(
                    lambda result: log.append((result, simulation.now())), lambda s=seconds: s, seconds=seconds
                )
            world.compute.submit(lambda result: log.append((result, simulation.now())), lambda: 1 // 0, seconds=0.25)
            await asyncio.sleep(10.0)

        simulation.run(main(), node="worker")
    assert log[:2] == [(1.0, 2.0), (0.5, 3.0)]
    failed, time = log[2]
    assert isinstance(failed, Failed) and isinstance(failed.error, ZeroDivisionError) and time == 3.5


def test_disks_keep_what_was_written_and_synced_over_a_crash() -> None:
    lives: list[tuple[bytes | None, list[bytes], list[str]]] = []

    def boot(world: World) -> None:
        journal = world.journal("log")
        lives.append((world.store.read("a"), list(journal.records()), world.store.keys("p/")))
        world.store.write("a", b"%d" % len(lives))
        world.store.write("p/x", b"")
        world.store.write("p/a", b"")
        journal.append(b"synced")
        journal.sync()
        journal.append(b"lost")
        assert list(world.journal("log").records())[-2:] == [b"synced", b"lost"]

    with Simulation(faults=Faults().crash("node", at=1.0).restart("node", at=2.0)) as simulation:
        first = simulation.node("node", boot=boot)
        simulation.advance(3.0)
        assert lives == [(None, [], []), (b"1", [b"synced"], ["p/a", "p/x"])]
        first.store.write("a", b"from the grave")
        first.store.delete("p/a")
        first.journal("log").sync()
        world = simulation.world("node")
        assert world.store.read("a") == b"2" and world.store.keys("p/") == ["p/a", "p/x"]
        assert list(world.journal("log").records()) == [b"synced", b"synced", b"lost"]


def test_random_streams_follow_from_seed_node_life_and_purpose() -> None:
    def draws(seed: int) -> list[float]:
        drawn: list[float] = []

        def boot(world: World) -> None:
            drawn.extend([world.random("one").random(), world.random("other").random()])

        with Simulation(seed=seed, faults=Faults().crash("a", at=1.0).restart("a", at=2.0)) as simulation:
            simulation.node("a", boot=boot)
            simulation.node("b", boot=boot)
            simulation.advance(3.0)
        return drawn

    assert draws(1) == draws(1)
    assert len({*draws(1), *draws(2)}) == 12


def test_an_actor_name_is_taken_once_and_free_again() -> None:
    from tests.sim.messages import EchoServer

    with Simulation() as simulation:
        world = simulation.node("node")

        async def main() -> None:
            host = Host(EchoServer(), world, "echo")
            with pytest.raises(AssertionError, match="taken"):
                Host(EchoServer(), world, "echo")
            host.stop()
            Host(EchoServer(), world, "echo").stop()

        simulation.run(main(), node="node")


SCENARIO = """
from tests.sim.test_faults import build, ask_from
from farflung.sim import Faults
from farflung.world.errors import Unreachable
faults = Faults.random(11, ["server"], until=40.0, sites=["eu", "us"]).duplicate(0.1, during=(0, 40))
with build(faults, seconds=0.1, seed=11) as simulation:
    simulation.node("other", site="eu")
    for number in range(60):
        try:
            ask_from(simulation, number, seconds=2.0)
        except Unreachable:
            simulation.advance(0.5)
    print(simulation.trace.trace_hash, simulation.trace.num_events)
"""


def test_two_processes_with_other_hash_seeds_have_one_history() -> None:
    def run(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", SCENARIO], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
        )
        return done.stdout

    assert run("1") == run("2")
    assert int(run("3").split()[1]) > 100


class LookedThrough(list[Any]):
    """A list that counts how often it is gone through."""

    num_times = 0

    def __iter__(self) -> Iterator[Any]:
        self.num_times += 1
        return super().__iter__()


def test_the_end_reaches_every_process_in_order_and_looks_through_the_timers_once() -> None:
    ended: list[int] = []

    def boot_of(number: int) -> Callable[[World], object]:
        async def work() -> None:
            try:
                await asyncio.sleep(1000.0)
            finally:
                ended.append(number)

        return lambda world: tasks.append(asyncio.get_running_loop().create_task(work()))

    tasks: list[asyncio.Task[None]] = []
    simulation = Simulation()
    for number in range(50):
        simulation.node(f"node-{number}", boot=boot_of(number))
    simulation.advance(1.0)
    loop = tasks[0].get_loop()
    timers = LookedThrough(loop._timers)  # type: ignore[attr-defined]
    loop._timers = timers  # type: ignore[attr-defined]
    simulation.close()
    assert ended == list(range(50))
    assert timers.num_times == 1


def test_the_simulator_does_not_load_torch() -> None:
    code = "import sys, farflung.sim, farflung.mesh.member, farflung.mesh.directory; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
