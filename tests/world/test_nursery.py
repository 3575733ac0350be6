"""A nursery starts, fails and ends its children in order, and neither swallows nor leaks a cancellation."""

import asyncio
import contextlib

import pytest

from farflung.world.nursery import open_nursery


async def sleeper(log: list[str], name: str) -> None:
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        log.append(name)
        raise


async def fail(error: Exception) -> None:
    await asyncio.sleep(0)
    raise error


async def test_leaves_when_all_children_are_done() -> None:
    log: list[int] = []

    async def child(number: int) -> None:
        await asyncio.sleep(0.001 * number)
        log.append(number)

    async with open_nursery() as nursery:
        for number in (3, 1, 2):
            nursery.start(child(number), name=f"child {number}")
    assert log == [1, 2, 3]


async def test_a_child_may_start_siblings() -> None:
    log: list[str] = []
    async with open_nursery() as nursery:

        async def parent() -> None:
            await asyncio.sleep(0.001)
            nursery.start(asyncio.sleep(0.001, log.append("younger")), name="younger")

        nursery.start(parent(), name="parent")
    assert log == ["younger"]


async def test_a_failing_child_cancels_siblings_oldest_first_and_wakes_the_block() -> None:
    log: list[str] = []
    with pytest.raises(LookupError, match="broken"):
        async with open_nursery() as nursery:
            for name in "abcdefgh":
                nursery.start(sleeper(log, name), name=name)
            nursery.start(fail(LookupError("broken")), name="failing")
            await sleeper(log, "block")
    assert log == [*"abcdefgh", "block"]
    await asyncio.sleep(0)  # the block's own cancellation has not leaked
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0


async def test_a_child_that_fails_while_the_block_is_leaving_is_raised() -> None:
    with pytest.raises(LookupError):
        async with open_nursery() as nursery:
            nursery.start(fail(LookupError("broken")), name="failing")
    await asyncio.sleep(0)


async def test_a_block_that_swallows_its_waking_still_raises_the_childs_error() -> None:
    with pytest.raises(LookupError):
        async with open_nursery() as nursery:
            nursery.start(fail(LookupError("broken")), name="failing")
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
    await asyncio.sleep(0)


async def test_an_error_in_the_block_cancels_children_and_is_raised() -> None:
    log: list[str] = []
    with pytest.raises(ZeroDivisionError):
        async with open_nursery() as nursery:
            nursery.start(sleeper(log, "a"), name="a")
            nursery.start(sleeper(log, "b"), name="b")
            await asyncio.sleep(0)
            raise ZeroDivisionError
    assert log == ["a", "b"]


async def test_cancellation_from_outside_reaches_children_and_goes_on() -> None:
    log: list[str] = []

    async def block(*, waits_in_block: bool) -> None:
        async with open_nursery() as nursery:
            nursery.start(sleeper(log, "child"), name="child")
            if waits_in_block:
                await asyncio.sleep(3600)

    for waits_in_block in (True, False):
        task = asyncio.create_task(block(waits_in_block=waits_in_block))
        await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert log == ["child", "child"]


async def test_a_deadline_around_a_nursery_ends_it() -> None:
    log: list[str] = []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), open_nursery() as nursery:
            nursery.start(sleeper(log, "child"), name="child")
    assert log == ["child"]


async def test_a_child_cancelled_alone_is_no_error() -> None:
    log: list[str] = []
    async with open_nursery() as nursery:
        nursery.start(sleeper(log, "a"), name="a")
        await asyncio.sleep(0)
        nursery.cancel()
    assert log == ["a"]


async def test_the_first_of_two_errors_wins() -> None:
    async def fail_when_cancelled() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            raise RuntimeError("second")

    with pytest.raises(LookupError, match="first"):
        async with open_nursery() as nursery:
            nursery.start(fail_when_cancelled(), name="second")
            nursery.start(fail(LookupError("first")), name="first")


async def test_children_are_taken_inside_the_block_only() -> None:
    async with open_nursery() as nursery:
        pass
    unwanted = asyncio.sleep(0)
    with pytest.raises(AssertionError, match="inside its block"):
        nursery.start(unwanted, name="late")
    unwanted.close()
