"""Real processes for tests: a free port, a server that is waited for, and its orderly end."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(holds: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Return once the condition holds; fail naming it after so many seconds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


@contextmanager
def tiny_server(folder: Path, *options: str) -> Iterator[str]:
    """A running API over the model in `folder`; yields its base URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        number = listening.fileno()
        command = [sys.executable, "-m", "tests.apps.serve_tiny", str(folder), str(number), *options]
        process = subprocess.Popen(command, cwd=ROOT, pass_fds=[number])

    def is_up() -> bool:
        assert process.poll() is None, "the server ended"
        try:
            return httpx.get(f"{url}/health", timeout=60).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(is_up, seconds=240, what="the server answers")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=120)
