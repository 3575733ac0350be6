"""The way of docs/newcomer.md, as it stands: seconds of each command, from nothing to a run of two machines.

Both machines are folders here, each with a home of its own; in the full form each has an environment of its own too,
which `make demo` and `pip install` fill. MODEL and TICKET are what a reader would put there. Runs are short in both
forms: how long training takes is the reader's choice.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.report import Report, bench_arguments

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "newcomer.md"
SECTION = re.compile(r"^## \d+\. ([^\n]*?) \((\d+) commands?\)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```\n(.*?)^```", re.MULTILINE | re.DOTALL)
SECONDS_MAX = 3600.0
"""Of one command; the first one installs everything."""
SHORT = " --set training.tokens=40000"
"""For runs that are waited for; one that another machine joins goes on until the end of the way."""
TEXTS = "A machine that is far away still learns.\n" * 4000
COMMANDS_MAX, JOINING_COMMANDS = 14, 2
MINUTES_MAX = 15.0


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    commands: tuple[str, ...]


def sections(page: str) -> list[Section]:
    """What the page asks to type, in order."""
    found = [(title, "".join(FENCE.findall(text)).splitlines()) for title, _, text in SECTION.findall(page)]
    return [Section(title, tuple(lines)) for title, lines in found]


@dataclass
class Machine:
    """A folder with a home and terminals of its own."""

    folder: Path
    programs: Path
    """Where `farflung` is found."""
    variables_unset: tuple[str, ...] = ()
    """Of those that the bench itself was started with."""
    logs: list[Path] = field(default_factory=list[Path])
    terminals: list[subprocess.Popen[bytes]] = field(default_factory=list["subprocess.Popen[bytes]"])

    def open(self, command: str, typed: str = "") -> subprocess.Popen[bytes]:
        """Type a command into a terminal of its own, and then a line."""
        environment = {**os.environ, "FARFLUNG_HOME": str(self.folder / "home"), "COLUMNS": "300"}
        environment["PATH"] = f"{self.programs}{os.pathsep}{environment['PATH']}"
        for variable in ("FARFLUNG_TICKET", *self.variables_unset):
            environment.pop(variable, None)
        self.logs.append(self.folder / f"terminal-{len(self.logs)}.txt")
        source = self.folder / "typed.txt"
        source.write_text(typed)
        with self.logs[-1].open("wb") as output, source.open("rb") as keys:
            terminal = subprocess.Popen(
                ["bash", "-c", f"exec {command}"] if command.startswith("farflung") else ["bash", "-c", command],
                cwd=self.folder,
                env=environment,
                stdin=keys,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.terminals.append(terminal)
        return terminal

    @property
    def text(self) -> str:
        """What the newest terminal shows."""
        return self.logs[-1].read_text(errors="replace")

    def close(self) -> None:
        """Close all terminals, the newest first."""
        for terminal in reversed(self.terminals):
            if terminal.poll() is None:
                terminal.terminate()
        for terminal in self.terminals:
            terminal.wait(120)
        self.terminals.clear()


class Newcomer:
    """Types what the page says, and waits for what each command is typed for."""

    def __init__(self, folder: Path, *, is_quick: bool) -> None:
        """`is_quick`: everything is installed already, and the demonstration trains for two seconds."""
        self._is_quick = is_quick
        self._clone = folder / "clone"
        own = Path(sys.executable).parent
        if is_quick:
            self.first, self.second = Machine(folder / "first", own), Machine(folder / "second", own)
        else:
            # With it the machines would run the code beside the bench, and not what they have installed.
            unset = ("PYTHONPATH",)
            self.first = Machine(self._clone, self._clone / ".venv/bin", unset)
            self.second = Machine(folder / "second", folder / "second" / "venv" / "bin", unset)

    def prepare(self) -> None:
        """What the page takes for granted: a clone, Python on the second machine, and texts."""
        if not self._is_quick:
            subprocess.run(["git", "clone", "-q", str(ROOT), str(self._clone)], check=True)
            subprocess.run([sys.executable, "-m", "venv", str(self.second.programs.parent)], check=True)
        for machine in (self.first, self.second):
            machine.folder.mkdir(exist_ok=True)
        (self.first.folder / "texts").mkdir()
        (self.first.folder / "texts" / "some.txt").write_text(TEXTS)

    def close(self) -> None:
        self.first.close()
        self.second.close()

    def type(self, command: str) -> float | None:
        """Seconds until the command has done what it is typed for; None: it is left out here."""
        machine = self.second if _is_of_second(command) else self.first
        meant = self._meant(command)
        if meant is None:
            return None
        if command.startswith("farflung join "):
            machine.close()  # as the page says
        if "--simulate" in command:
            self.close()  # what goes on would be measured with it
        began = time.monotonic()
        terminal = machine.open(meant, "def main(\n" if " chat " in command else "")
        seen = _seen(command)
        deadline = began + SECONDS_MAX
        while not (seen in machine.text if seen else terminal.poll() is not None):
            if terminal.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command}: status {terminal.poll()}\n{machine.text[-3000:]}")
            time.sleep(0.02)
        if not seen and terminal.returncode not in _statuses(command):
            raise RuntimeError(f"{command}: status {terminal.returncode}\n{machine.text[-3000:]}")
        return time.monotonic() - began

    def _meant(self, command: str) -> str | None:
        """What a reader of this machine types for it."""
        if self._is_quick and command == "make demo":
            return "farflung demo --train-seconds 2"
        if command == "pip install farflung":
            return None if self._is_quick else f"pip install -q -c {ROOT / 'constraints.txt'} {self._clone}"
        meant = command.replace("MODEL", self._model) if "MODEL" in command else command
        if "TICKET" in meant:
            meant = meant.replace("TICKET", self._far_ticket if " join " in meant else self._ticket)
        is_short = meant.startswith("farflung pretrain mine.toml") and "joiners_max" not in meant
        return meant + SHORT if is_short else meant

    @property
    def _model(self) -> str:
        """The one that the demonstration has trained."""
        return str(next((self.first.folder / "home" / "demo").glob("model-*/config.json")).parent)

    @property
    def _ticket(self) -> str:
        """As the founder has printed it."""
        founder = next(log.read_text() for log in self.first.logs if "founded the swarm" in log.read_text())
        return re.findall(r"farflung1\S+", founder)[0]

    @property
    def _far_ticket(self) -> str:
        return (self.first.folder / "far" / "ticket").read_text().strip()


def _is_of_second(command: str) -> bool:
    return command.startswith(("pip ", "farflung join ")) or command == "farflung serve MODEL --join TICKET"


def _seen(command: str) -> str:
    """What a terminal that goes on shows at last; "": the command ends by itself."""
    shown = {
        "farflung serve": "serving blocks",
        "farflung dashboard": "dashboard at",
        "farflung join": "takes the seat",
    }
    if "joiners_max" in command:
        return "another machine takes part with"
    return next((words for beginning, words in shown.items() if command.startswith(beginning)), "")


def _statuses(command: str) -> tuple[int, ...]:
    """With which it may end: a doctor may find something wrong with this machine."""
    return (0, 1) if command == "farflung doctor" else (0,)


def walk(newcomer: Newcomer, page: str) -> Iterator[tuple[str, str, float | None]]:
    """Title of the section, command and its seconds, one after another."""
    for section in sections(page):
        for command in section.commands:
            yield section.title, command, newcomer.type(command)


def measure(report: Report, *, is_quick: bool, tell: Callable[[str], object]) -> None:
    """Go the way once."""
    page = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        newcomer = Newcomer(Path(folder), is_quick=is_quick)
        newcomer.prepare()
        walked: list[tuple[str, str, float | None]] = []
        try:
            for step in walk(newcomer, page):
                walked.append(step)
                tell(f"{step[1]}: {'left out' if step[2] is None else f'{step[2]:.1f} s'}")
        finally:
            newcomer.close()
    rows = [(title, command, "left out" if seconds is None else seconds) for title, command, seconds in walked]
    report.table("the way of docs/newcomer.md", ("section", "command", "seconds"), rows)
    total = sum(seconds or 0.0 for _, _, seconds in walked)
    joining = [seconds for title, _, seconds in walked if title == "A second machine joins"]
    report.claim(
        "commands from nothing to a run over two machines", COMMANDS_MAX, len(walked), len(walked) <= COMMANDS_MAX
    )
    said = f"{len(joining)}, {sum(seconds or 0.0 for seconds in joining):.0f} s"
    report.claim("a second machine joins: commands", JOINING_COMMANDS, said, len(joining) <= JOINING_COMMANDS)
    told = f"{total / 60:.1f}" + (" without installing" if is_quick else "")
    report.claim("minutes of all commands", f"< {MINUTES_MAX:g}", told, total < 60 * MINUTES_MAX)


def main() -> int:
    """Measure; 0 if every claim holds."""
    arguments = bench_arguments(__doc__ or "").parse_args()
    report = Report("newcomer", {"is_quick": arguments.quick})
    measure(report, is_quick=arguments.quick, tell=report.console.print)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
