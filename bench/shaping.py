"""A link with delay, a rate and losses as a program, for measurements that must not share an interpreter with it:

    python -m bench.shaping --target 127.0.0.1:5000 --one-way-seconds 0.025 --bytes-per-second 12.5e6 --loss 0.001

prints the port that it listens on, and reads the commands `stall`, `resume` and `reset`, one a line, from its input. It
keeps time to about 0.1 ms; `runtime.shaped_link` on a stock event loop only to about 1 ms, since epoll counts
milliseconds.
"""

import argparse
import asyncio
import contextlib
import selectors
import sys
from collections.abc import AsyncIterator

from farflung.runtime.shaped_link import shaped_link


@contextlib.asynccontextmanager
async def shaped_link_process(
    target_port: int, **shape: float
) -> AsyncIterator[tuple[int, asyncio.subprocess.Process]]:
    """The same in a process of its own: (port, process); arguments as those of `shaped_link`."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in shape.items()]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.shaping",
        f"--target=127.0.0.1:{target_port}",
        *options,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield int(await process.stdout.readline()), process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _main() -> None:
    parser = argparse.ArgumentParser(description="a shaped link, as a program")
    parser.add_argument("--target", required=True, metavar="HOST:PORT")
    parser.add_argument("--one-way-seconds", type=float, default=0.0)
    parser.add_argument("--bytes-per-second", type=float, default=float("inf"))
    parser.add_argument("--loss", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    host, port = arguments.target.rsplit(":", 1)
    async with shaped_link(
        int(port),
        target_host=host,
        one_way_seconds=arguments.one_way_seconds,
        bytes_per_second=arguments.bytes_per_second,
        loss=arguments.loss,
        seed=arguments.seed,
    ) as link:
        print(link.port, flush=True)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        commands = {"stall": link.stall, "resume": link.resume, "reset": link.reset}
        while line := (await reader.readline()).decode().strip():
            commands[line]()


if __name__ == "__main__":
    # select() takes microseconds where epoll takes milliseconds.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(_main())
