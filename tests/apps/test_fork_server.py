"""Commands that are forked from one process: their output, statuses and signals are those of processes of their own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.apps.processes import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="commands start anew here")

LEAD = """
import json, os, signal, sys, time
from pathlib import Path
import farflung.apps.cli
from farflung.apps.fork_server import fork_server, serving_forks
from farflung.apps.processes import Supervisor

def tell(**entry):
    print(json.dumps(entry), flush=True)

folder, silent = Path(sys.argv[1]), sys.argv[2]
reading = ["journal", "show", silent]
farflung.apps.cli.app.command("fail")(lambda: 1 / 0)
with serving_forks():
    with Supervisor(folder) as supervisor:
        {work}
tell(has_server=fork_server() is not None)
"""


@pytest.fixture
def silent(tmp_path: Path) -> str:
    """A file on which whoever reads it waits for ever."""
    os.mkfifo(tmp_path / "silent")
    return str(tmp_path / "silent")


def lead(folder: Path, silent: str, *lines: str) -> subprocess.Popen[str]:
    """A process that does so with a supervisor, and tells things as lines of JSON."""
    script = LEAD.replace("{work}", "\n        ".join(lines))
    command = [sys.executable, "-c", script, str(folder), silent]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def told(process: subprocess.Popen[str]) -> list[dict[str, object]]:
    """All that such a process has told when it has ended well."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert not errors
    return [json.loads(line) for line in output.splitlines()]


def test_a_command_has_its_own_output_status_and_variables(silent: str, tmp_path: Path) -> None:
    (tmp_path / "shown.log").write_text("what an earlier life has left")
    process = lead(
        tmp_path,
        silent,
        'shown = supervisor.command("shown", ["--help"], {})',
        'refused = supervisor.command("refused", ["status"], {"FARFLUNG_TICKET": "nonsense"})',
        'lacking = supervisor.command("lacking", ["status"], {})',
        "tell(statuses=[child.process.wait(120) for child in (shown, refused, lacking)])",
    )
    assert told(process) == [{"statuses": [0, 2, 2]}, {"has_server": False}]
    assert (tmp_path / "shown.log").read_text().split()[:2] == ["Usage:", "farflung"]
    assert (tmp_path / "refused.log").read_text().startswith("farflung: this is not a ticket")
    assert not (tmp_path / "lacking.log").read_text().startswith("farflung: this is not a ticket")


def test_a_signal_reaches_the_group_of_one_command_alone(silent: str, tmp_path: Path) -> None:
    process = lead(
        tmp_path,
        silent,
        'one, other = (supervisor.command(name, reading, {}) for name in ("one", "other"))',
        "tell(are_leaders=[os.getpgid(child.process.pid) == child.process.pid for child in (one, other)])",
        "one.kill()",
        "tell(one=one.status, other=other.status)",
        "other.stop()",
        "tell(other=other.status)",
    )
    assert told(process) == [
        {"are_leaders": [True, True]},
        {"one": -signal.SIGKILL, "other": None},
        {"other": -signal.SIGTERM},
        {"has_server": False},
    ]


def test_a_server_that_is_killed_takes_its_commands_along_and_others_start_anew(silent: str, tmp_path: Path) -> None:
    process = lead(
        tmp_path,
        silent,
        "import psutil",
        'first = supervisor.command("first", reading, {})',
        "child = psutil.Process(first.process.pid)",
        "child.parent().kill()",
        "tell(first=first.process.wait(60))",
        "psutil.wait_procs([child], timeout=60)",
        "tell(is_there=child.is_running(), has_server=fork_server() is not None)",
        'second = supervisor.command("second", ["--help"], {})',
        "tell(second=second.process.wait(120))",
    )
    assert told(process) == [
        {"first": -signal.SIGTERM},
        {"is_there": False, "has_server": False},
        {"second": 0},
        {"has_server": False},
    ]


def test_a_command_that_fails_leaves_its_traceback_and_never_comes_back_to_the_lead(
    silent: str, tmp_path: Path
) -> None:
    process = lead(
        tmp_path,
        silent,
        'failed = supervisor.command("failed", ["fail"], {})',
        "tell(status=failed.process.wait(60))",
    )
    assert told(process) == [{"status": 1}, {"has_server": False}]
    assert "ZeroDivisionError" in (tmp_path / "failed.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_forks_end_when_the_parent_is_killed_or_interrupted(
    silent: str, tmp_path: Path, number: signal.Signals
) -> None:
    waiting = ['one = supervisor.command("one", reading, {})', "tell(pid=one.process.pid)", "time.sleep(600)"]
    with lead(tmp_path, silent, *waiting) as parent:
        assert parent.stdout is not None
        child = psutil.Process(json.loads(parent.stdout.readline())["pid"])
        family = psutil.Process(parent.pid).children(recursive=True)
        assert child in family and len(family) == 2
        os.kill(parent.pid, number)
        parent.communicate(timeout=120)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive


def test_an_interrupt_at_the_moment_of_the_fork_is_not_lost() -> None:
    script = """
import os, signal
from farflung.apps.fork_server import serving_forks
os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGINT))
try:
    with serving_forks():
        print("went on")
except KeyboardInterrupt:
    print("interrupted")
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")
