"""Where the seats of a site run: as processes of this machine, or as actors of Ray. Both run the same command lines."""

import importlib.util
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, get_args

from farflung.apps.processes import Child, ChildFailed, Supervisor
from farflung.apps.runs.reader import check_known

USER_ERROR = 2
LOOK_SECONDS = 0.2
LINES_SHOWN = 15
LauncherName = Literal["processes", "ray"]


class Started(Protocol):
    """A command at work."""

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        ...

    @property
    def status(self) -> int | None:
        """Its exit status, once it has ended."""
        ...

    def lines(self) -> list[str]:
        """What it has written so far."""
        ...


class Launcher(Protocol):
    """Starts commands and, on leaving its `with` block, ends all that are left."""

    def __enter__(self) -> "Launcher": ...

    def __exit__(self, *exception: object) -> None: ...

    def start(
        self, name: str, arguments: Sequence[str], variables: Mapping[str, str], *, num_ranks: int = 0
    ) -> Started:
        """Start `farflung ARGUMENTS` with these variables of the environment; its output goes to NAME.log.

        `num_ranks`: how many of its processes can use an accelerator.
        """
        ...


class Processes:
    """Commands as processes of this machine."""

    def __init__(self, folder: Path) -> None:
        """`folder` gets a log per process."""
        self._supervisor = Supervisor(folder)

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *exception: object) -> None:
        self._supervisor.stop()

    def start(self, name: str, arguments: Sequence[str], variables: Mapping[str, str], *, num_ranks: int = 0) -> Child:
        """As `Launcher.start`; all of them see all accelerators."""
        return self._supervisor.command(name, arguments, variables)


def check_launcher(name: str) -> LauncherName:
    """The launcher of that name, if it can be used here.

    Raises:
        ValueError: there is none, or Ray is not installed.
    """
    names = get_args(LauncherName)
    check_known(name, names, "--engine", what="engine")
    if name == "ray" and importlib.util.find_spec("ray") is None:
        raise ValueError("--engine ray needs Ray, which is not installed here: pip install 'farflung[ray]'")
    return "ray" if name == "ray" else "processes"


def launcher_of(name: LauncherName, folder: Path, num_ranks: int) -> Launcher:
    """The launcher of that name, for so many ranks in all; logs go to `folder`."""
    if name == "processes":
        return Processes(folder)
    from farflung.apps.runs.ray_actors import RayActors

    return RayActors(folder, num_ranks)


def run_with(name: LauncherName, folder: Path, arguments: Sequence[str], num_ranks: int, ticket: str) -> None:
    """Run one command of a worker to its end; its log goes to `folder`.

    Raises:
        ValueError: what the command itself says is the user's mistake.
        ChildFailed: it has failed; says what it last wrote.
    """
    with launcher_of(name, folder, num_ranks) as launcher:
        command = launcher.start("seat", arguments, {"FARFLUNG_TICKET": ticket}, num_ranks=num_ranks)
        while command.is_running:
            time.sleep(LOOK_SECONDS)
        if command.status == USER_ERROR:
            raise ValueError(command.lines()[-1].removeprefix("farflung: "))
        if command.status:
            last = "\n".join(command.lines()[-LINES_SHOWN:])
            raise ChildFailed(f"the seat ended with status {command.status}; it last wrote:\n{last}")
