"""What the dashboard costs while nothing happens, in a swarm of 20 real nodes: nobody watching, and one viewer."""

import asyncio
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil

from bench.report import Report, bench_arguments
from farflung.apps.announced import TOPIC
from farflung.apps.wiring import Place, join
from farflung.systems.swarm.info import BlockRange, ServerInfo, ServerState
from farflung.wire.certificate import TicketRole

Found = TypeVar("Found")

NUM_NODES = 20
SHARE_MAX = 0.02
START_SECONDS_MAX = 120.0
SETTLE_SECONDS = 15.0
"""Links are opened and every way has been measured by then."""


def info(index: int) -> ServerInfo:
    """Of an idle server that holds two of eight blocks."""
    first = 2 * (index % 4)
    return ServerInfo(
        model="f" * 40,
        model_name="model",
        blocks=BlockRange(first, first + 2),
        state=ServerState.ONLINE,
        blocks_per_second=1000.0,
        forward_tokens_per_second=10_000.0,
        cache_tokens_max=16_384,
        cache_tokens_left=16_384,
        dtype="float32",
        started_at=0.0,
        version="0",
        num_model_blocks=8,
    )


async def live(folder: Path) -> None:
    """Found a swarm and join it 19 times; the clients' ticket is written last."""
    founder = await join(Place(home=folder / "0", is_rendezvous=True, site="site-0"), new_swarm="bench")
    now = time.time()
    nodes = [founder]
    for index in range(1, NUM_NODES):
        ticket = founder.node.ticket.invite(TicketRole.SERVER, now + 3600, now)
        nodes.append(await join(Place(home=folder / str(index), site=f"site-{index % 4}"), ticket=ticket.text()))
    for index, node in enumerate(nodes):
        await node.wait_joined()
        node.publish(TOPIC, info(index).to_bytes())
    (folder / "ticket").write_text(founder.node.ticket.invite(TicketRole.CLIENT, now + 3600, now).text())
    await asyncio.Event().wait()


def run_nodes(folder: Path) -> None:
    """The process of all nodes."""
    asyncio.run(live(folder))


@contextmanager
def nodes(folder: Path) -> Iterator[str]:
    """Twenty nodes in a process of their own; yields a client's ticket."""
    process = multiprocessing.get_context("spawn").Process(target=run_nodes, args=(folder,), daemon=True)
    process.start()
    try:
        ticket = folder / "ticket"
        wait_for(lambda: ticket.exists() and ticket.read_text(), "the nodes have joined")
        yield ticket.read_text()
    finally:
        process.terminate()
        process.join()


@contextmanager
def dashboard(ticket: str, folder: Path) -> Iterator[tuple[psutil.Process, str]]:
    """A dashboard's process and its address."""
    log = folder / "dashboard.log"
    command = [sys.executable, "-m", "farflung", "dashboard", "--join", ticket, "--port", "0"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, env={**os.environ, "FARFLUNG_HOME": str(folder / "home")})
    try:
        found = wait_for(lambda: re.search(r"http://\S+", log.read_text()), "the dashboard answers")
        assert found is not None
        yield psutil.Process(process.pid), found[0]
    finally:
        process.terminate()
        process.wait()


@contextmanager
def viewer(address: str) -> Iterator[None]:
    """Chromium with the page *Swarm* open."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        page.locator("[data-peer]").nth(NUM_NODES - 1).wait_for()
        yield
        browser.close()


def wait_for(found: Callable[[], Found], what: str) -> Found:
    """What `found` returns once it is true."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while not (value := found()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return value


def share(process: psutil.Process, seconds: float) -> float:
    """Of a core that the process uses over so many seconds."""
    before, began = process.cpu_times(), time.monotonic()
    time.sleep(seconds)
    after = process.cpu_times()
    return (after.user + after.system - before.user - before.system) / (time.monotonic() - began)


def main() -> int:
    """Run; the exit status says whether all claims hold."""
    arguments = bench_arguments(__doc__ or "").parse_args()
    seconds = 15.0 if arguments.quick else 60.0
    report = Report("dashboard_idle", {"nodes": NUM_NODES, "seconds": seconds})
    with (
        tempfile.TemporaryDirectory(prefix="farflung-bench-") as scratch,
        nodes(Path(scratch)) as ticket,
        dashboard(ticket, Path(scratch)) as (process, address),
    ):
        time.sleep(SETTLE_SECONDS)
        alone = share(process, seconds)
        report.claim("share of a core, nobody watching", f"below {SHARE_MAX:.0%}", f"{alone:.2%}", alone < SHARE_MAX)
        if shutil.which("chromium") is not None:
            with viewer(address):
                watched = share(process, seconds)
            text = "share of a core, one viewer of the page Swarm"
            report.claim(text, f"below {SHARE_MAX:.0%}", f"{watched:.2%}", watched < SHARE_MAX)
        memory = process.memory_info().rss / 1e6
        report.table("Memory", ("of the dashboard", "MB"), [("resident", memory)])
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
