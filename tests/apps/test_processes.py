"""Children end with their parent, however it ends, and in order when it leaves."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from farflung.apps.processes import ChildFailed, Supervisor
from tests.apps.processes import ROOT, wait_until

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)
TIED = "from farflung.apps.parents import tie_to_parent; tie_to_parent(); " + SLEEPER
ABRUPT = """
import atexit, sys
from farflung.apps.processes import end_at_once, leave
atexit.register(print, "the interpreter ends")
print("done")
if "abrupt" in sys.argv:
    end_at_once()
leave(3)
"""
PARENT = f"""
import sys, time
from pathlib import Path
from farflung.apps.processes import Supervisor
child = {TIED!r}
with Supervisor(Path(sys.argv[1])) as supervisor:
    one = supervisor.start("one", [sys.executable, "-c", child], dict())
    supervisor.wait_until(lambda: "up" in one.lines(), seconds_max=180, what="it is up")
    print(one.process.pid, flush=True)
    time.sleep(600)
"""


def test_leaving_the_block_ends_all_children_also_the_stubborn(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as supervisor:
        one = supervisor.start("one", [sys.executable, "-c", SLEEPER], {})
        two = supervisor.start("two", [sys.executable, "-c", STUBBORN], {})
        supervisor.wait_until(lambda: "up" in one.lines() and "up" in two.lines(), seconds_max=180, what="both are up")
        assert one.is_running and two.is_running
    assert one.process.returncode == -signal.SIGTERM
    assert two.process.returncode == -signal.SIGKILL


def test_a_child_that_ends_early_fails_the_wait_with_its_last_words(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as supervisor:
        supervisor.start("brief", [sys.executable, "-c", "print('cannot go on')"], {})
        with pytest.raises(ChildFailed, match="brief ended while waiting until pigs fly:\ncannot go on"):
            supervisor.wait_until(lambda: False, seconds_max=60, what="pigs fly")


def test_a_condition_that_never_holds_fails_in_time(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as supervisor:
        supervisor.start("one", [sys.executable, "-c", SLEEPER], {})
        with pytest.raises(ChildFailed, match=r"not within 0.2 s: pigs fly"):
            supervisor.wait_until(lambda: False, seconds_max=0.2, what="pigs fly")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_children_end_when_the_parent_is_killed_or_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
        assert psutil.pid_exists(child)
        os.kill(parent.pid, number)
        parent.wait(timeout=120)
    wait_until(lambda: not _is_alive(child), seconds=60, what="the child is gone")


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(("word", "output"), [("usual", "done\nthe interpreter ends\n"), ("abrupt", "done\n")])
def test_a_process_with_threads_of_a_group_leaves_its_interpreter_up(word: str, output: str) -> None:
    command = [sys.executable, "-c", ABRUPT, word]
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (3, output)
