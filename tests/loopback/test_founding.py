"""A founder whose ticket cannot be written says so: at once when it starts, and again when it can no more."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from farflung.apps.serve import keep_tickets
from farflung.apps.wiring import Place, join
from farflung.world.nursery import open_nursery
from tests.loopback.fleet import PATIENCE_SECONDS, ROOT

pytestmark = pytest.mark.loopback


def test_a_ticket_that_cannot_be_written_ends_the_founder_with_a_sentence(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("no folder")
    command = [
        sys.executable,
        "-m",
        "farflung",
        "serve",
        str(folder),
        "--new-swarm",
        "--blocks",
        "0:1",
        "--threads",
        "1",
    ]
    ended = subprocess.run(
        [*command, "--ticket-file", str(place / "ticket")],
        cwd=ROOT,
        env={**os.environ, "FARFLUNG_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    (sentence,) = ended.stderr.splitlines()
    assert sentence.startswith(f"farflung: the ticket cannot be written to {place / 'ticket'}: ")
    assert "leaves the swarm" in ended.stdout


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not holds():  # noqa: ASYNC110 - nothing tells it
            await asyncio.sleep(0.02)


async def test_a_ticket_that_can_no_longer_be_written_is_told_once_and_tried_again(tmp_path: Path) -> None:
    path, told = tmp_path / "ticket", list[str]()
    async with AsyncExitStack() as stack:
        founder = await join(Place(home=tmp_path / "founder", is_rendezvous=True), new_swarm="tickets")
        stack.push_async_callback(founder.close)
        nursery = await stack.enter_async_context(open_nursery())
        nursery.start(keep_tickets(founder, [path], told.append), name="tickets")
        await until(path.exists)
        first = path.read_text()
        path.unlink()
        path.mkdir()
        # Another rendezvous node is news for the ticket.
        second = await join(Place(home=tmp_path / "second", is_rendezvous=True), ticket=founder.node.ticket.text())
        stack.push_async_callback(second.close)
        await until(lambda: told)
        await asyncio.sleep(2.5)
        assert len(told) == 1 and told[0].startswith(f"the ticket cannot be written to {path}: ")
        path.rmdir()
        await until(path.is_file)
        assert path.read_text() != first and len(told) == 1
        nursery.cancel()
