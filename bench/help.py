"""How long the help of each command takes: seconds of a core, a whole process each."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import typer

from bench.report import Report, bench_arguments
from farflung.apps import cli

SECONDS_MAX = 0.5


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command and group of commands."""
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


def seconds_of(path: tuple[str, ...]) -> float:
    """Seconds of a core that one process needs."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "farflung", *path, "--help"]
    subprocess.run(command, env=dict(os.environ), stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    """Run; the exit status says whether all claims hold."""
    arguments = bench_arguments(__doc__ or "").parse_args()
    repeats = 1 if arguments.quick else 5
    report = Report("help", {"repeats": repeats})
    seconds_of(())  # from here on the files are in memory
    found = {path: min(seconds_of(path) for _ in range(repeats)) for path in commands(typer.main.get_command(cli.app))}
    report.table(
        "Help", ("command", "seconds of a core"), [(" ".join(("farflung", *path)), one) for path, one in found.items()]
    )
    slowest = max(found, key=lambda path: found[path])
    text = f"help of the slowest of {len(found)} commands, farflung {' '.join(slowest)}: seconds of a core"
    report.claim(text, f"below {SECONDS_MAX}", f"{found[slowest]:.2f}", found[slowest] < SECONDS_MAX)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
