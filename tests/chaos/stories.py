"""What the tests of several systems ask of their scenarios."""

import os
import subprocess
import sys
from collections.abc import Callable, Sized
from pathlib import Path

ROOT = Path(__file__).parents[2]
HASH_SEEDS = ("1", "4242")


def told_twice(module: str, *arguments: str) -> list[str]:
    """What two processes print, side by side, whose strings hash differently."""
    command = [sys.executable, "-m", module, *arguments]
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}, text=True, stdout=subprocess.PIPE
        )
        for seed in HASH_SEEDS
    ]
    told = [process.communicate(timeout=200)[0] for process in processes]
    assert not any(process.returncode for process in processes)
    return told


def goes_wrong(breaches: Callable[[], Sized]) -> bool:
    """Whether a run with a planted bug breaks a rule, or fails."""
    try:
        return len(breaches()) > 0
    except (TypeError, AttributeError, NameError):
        raise  # the plant itself is wrong: such a failure would show nothing
    except Exception:  # noqa: BLE001  a planted bug may surface as any other error; that is caught too
        return True
