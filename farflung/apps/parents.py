"""Children that end with their parent, however it ends: the system (Linux) or a watching thread (elsewhere) does it."""

import ctypes
import os
import signal
import sys
import threading
import time

PARENT_VARIABLE = "FARFLUNG_PARENT"
"""Set for children: the process without which they shall not live."""
_PR_SET_PDEATHSIG = 1


def tie_to_parent() -> None:
    """In a child: end when the parent that a Supervisor named is gone."""
    parent = os.environ.pop(PARENT_VARIABLE, None)
    if parent is not None:
        end_with_parent(int(parent))


def end_with_parent(parent: int) -> None:
    """Have this process terminated once its parent, which is that one, is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    else:
        threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it died before we asked to be told
        os.kill(os.getpid(), signal.SIGTERM)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
