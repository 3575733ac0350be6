"""Compute threads and the event-loop thread: order, failures, interrupts, ends."""

import asyncio
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from farflung.runtime.compute import ThreadCompute
from farflung.runtime.thread import LoopThread
from farflung.world.doors import Failed
from tests.runtime.conftest import eventually

REPOSITORY = Path(__file__).parents[2]


async def test_calls_run_in_order_in_one_other_thread_and_end_on_the_loop() -> None:
    compute = ThreadCompute()
    ran: list[tuple[int, int]] = []
    done: list[tuple[object, int]] = []

    def work(number: int) -> int:
        ran.append((number, threading.get_ident()))
        return number * 2

    for number in range(100):
        compute.submit(lambda result: done.append((result, threading.get_ident())), work, number, seconds=0.0)
    await eventually(lambda: len(done) == 100)
    assert [number for number, _ in ran] == list(range(100))
    assert [result for result, _ in done] == [number * 2 for number in range(100)]
    assert {thread for _, thread in done} == {threading.get_ident()}
    assert len({thread for _, thread in ran} - {threading.get_ident()}) == 1
    await compute.close()


async def test_a_failure_is_a_result_and_the_next_call_runs(caplog: pytest.LogCaptureFixture) -> None:
    compute = ThreadCompute()
    done: list[object] = []

    def broken(result: object) -> None:
        raise RuntimeError("planted")

    compute.submit(done.append, lambda: 1 / 0, seconds=0.0)
    compute.submit(broken, lambda: 1, seconds=0.0)
    compute.submit(done.append, lambda: 2, seconds=0.0)
    await eventually(lambda: len(done) == 2)
    assert isinstance(done[0], Failed)
    assert isinstance(done[0].error, ZeroDivisionError)
    assert done[1] == 2
    assert "failed when it was given a result" in caplog.text
    await compute.close()


async def test_closing_drops_what_waits_and_waits_for_what_runs() -> None:
    compute = ThreadCompute()
    started, may_end = threading.Event(), threading.Event()
    done: list[object] = []

    def long() -> str:
        started.set()
        may_end.wait(60)
        return "long"

    compute.submit(done.append, long, seconds=0.0)
    compute.submit(done.append, lambda: "waiting", seconds=0.0)
    await asyncio.to_thread(started.wait, 60)
    closing = asyncio.create_task(compute.close())
    await asyncio.sleep(0)
    may_end.set()
    await closing
    await asyncio.sleep(0)
    assert done == []


async def test_results_are_not_held_while_nothing_runs() -> None:
    class Big:
        alive = 0

        def __init__(self) -> None:
            Big.alive += 1

        def __del__(self) -> None:
            Big.alive -= 1

    compute = ThreadCompute()
    done: list[int] = []
    compute.submit(lambda result: done.append(1), Big, seconds=0.0)
    await eventually(lambda: done)
    await eventually(lambda: Big.alive == 0)
    await compute.close()


async def test_handing_a_call_over_and_back_is_quick() -> None:
    compute = ThreadCompute()
    loop, taken = asyncio.get_running_loop(), list[float]()
    for _ in range(200):
        future: asyncio.Future[object] = loop.create_future()
        began = time.perf_counter()
        compute.submit(future.set_result, int, seconds=0.0)
        await future
        taken.append(time.perf_counter() - began)
    # About 0.05 ms on an idle machine; the best of many says what the code costs however busy this one is. What waits
    # for a timer, or polls, takes ten milliseconds at best.
    assert min(taken) < 0.01
    await compute.close()


def test_other_threads_run_coroutines_and_get_results_and_errors() -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return number * 2

    async def fail() -> None:
        raise ValueError("planted")

    with LoopThread() as thread:
        assert [thread.run(double(number)) for number in range(5)] == [0, 2, 4, 6, 8]
        with pytest.raises(ValueError, match="planted"):
            thread.run(fail())
    for _ in range(2):
        thread.close()
        with pytest.raises(RuntimeError, match="closed"):
            thread.run(double(1))


def test_the_loops_own_thread_does_not_wait_for_itself() -> None:
    async def inner() -> None:
        pass

    with LoopThread() as thread:

        async def outer() -> None:
            thread.run(inner())

        with pytest.raises(RuntimeError, match="await the coroutine instead"):
            thread.run(outer())


def test_closing_cancels_what_is_under_way() -> None:
    ended: list[str] = []

    async def wait(started: threading.Event) -> None:
        started.set()
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append("cancelled")

    def ask() -> None:
        with pytest.raises(CancelledError):
            thread.run(wait(started))
        ended.append("told")

    thread, started = LoopThread(), threading.Event()
    waiter = threading.Thread(target=ask)
    waiter.start()
    started.wait(60)
    thread.close()
    waiter.join(60)
    assert ended == ["cancelled", "told"]
    assert not waiter.is_alive()


PROGRAM = """
import asyncio, os, sys
from farflung.runtime.thread import LoopThread
thread = LoopThread()
async def wait():
    print("waiting", flush=True)
    try:
        await asyncio.sleep(1000)
    finally:
        print("cancelled", flush=True)
"""


def test_an_interrupt_cancels_the_wait_and_the_process_leaves() -> None:
    program = (
        PROGRAM + "try:\n    thread.run(wait())\nexcept KeyboardInterrupt:\n    print('interrupted', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=120)
    assert sorted(out.split()) == ["cancelled", "interrupted"]
    assert (process.returncode, errors) == (0, "")


def test_a_forked_process_is_told_to_connect_by_itself() -> None:
    program = PROGRAM + (
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try:\n"
        "        thread.run(wait())\n"
        "    except RuntimeError as error:\n"
        "        print(error, flush=True)\n"
        "    thread.close()\n"
        "    sys.exit(0)\n"
        "print(os.waitpid(child, 0)[1], flush=True)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=240, check=True)
    assert "connect after the fork" in done.stdout
    assert done.stdout.endswith("\n0\n")
