"""Starts `farflung` processes quickly: everything is imported once, then every order forks one process.

Orders and answers are those of `farflung.apps.fork_server`, on standard input and output. What runs in a fork is the
command line's own `main`, or a script if the first argument names one.
"""

import contextlib
import importlib
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from farflung.apps import cli
from farflung.apps.fork_server import ForkServer, serve

IMPORTED = (
    "farflung.apps.api",
    "farflung.apps.serve",
    "farflung.apps.terminal",
    "farflung.apps.status",
    "farflung.apps.library",
    "farflung.apps.pretrain.job",
    "farflung.apps.runs.command",
    "farflung.apps.runs.take_seat",
    "transformers.models.llama.modeling_llama",
)
SECONDS_MAX = 300.0
IMPORT_SECONDS_MAX = 600.0
"""No test's own deadline runs while the forge imports."""
command_line = cli.main


@contextlib.contextmanager
def open_forge() -> Iterator[ForkServer]:
    """Such a process, which ends with the block, and with it all that it has started."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment.pop("FARFLUNG_TICKET", None)
    command = [sys.executable, "-m", "tests.forge"]
    folder = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as forge:
        assert forge.stdin is not None and forge.stdout is not None
        server = ForkServer(forge.stdin.fileno(), forge.stdout.fileno())
        first = server.start(["--help"], {}, Path(os.devnull))
        assert first.wait(IMPORT_SECONDS_MAX) == 0, "the forge does not start; see its errors above"
        yield server


@dataclass(frozen=True)
class Ended:
    """What a command has come to."""

    status: int
    text: str
    """All that it has written, to its output and as errors."""


def run(forge: ForkServer, folder: Path, *arguments: str, **variables: str) -> Ended:
    """One command to its end, with the home of the test; `folder` gets a log."""
    log = folder / f"log-{len(list(folder.glob('log-*')))}"
    home = {"FARFLUNG_HOME": os.environ["FARFLUNG_HOME"]}
    status = forge.start(arguments, {**home, **variables}, log).wait(SECONDS_MAX)
    return Ended(status, log.read_text())


def main() -> None:
    """Become what `sys.argv` says."""
    if sys.argv[1].endswith(".py"):
        del sys.argv[0]
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        command_line()


if __name__ == "__main__":
    for name in IMPORTED:
        importlib.import_module(name)
    cli.main = main
    orders, answers = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    serve(orders, answers)
