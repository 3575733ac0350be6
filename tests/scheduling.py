"""Which of the processes that run the suite takes which tests: one a whole file, and real processes mostly alone."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[1]
REAL_PROCESSES = "real processes: "
MARKER = "pytest.mark.loopback"
FLEET = "Fleet"
"""The files of tests/loopback that name it share the servers that it keeps."""


class FilesTogether(LoadScopeScheduling):
    """What a file's tests share is made once; tests of real processes run beside each other only when all else is done.

    So no more than one of them competes with tests that use a core, and at the end no core waits for the other.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid.split("::", 1)[0])

    def _assign_work_unit(self, node: Any) -> None:
        others = (units for other, units in self.assigned_work.items() if other is not node)
        at_work = [scope for units in others for scope, done in units.items() if not all(done.values())]
        self.workqueue.move_to_end(next_scope(self.workqueue, at_work), last=False)
        super()._assign_work_unit(node)


def group_of(path: str) -> str:
    """Of a test file: its own group, or the one of all files that share the fleet."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if MARKER not in text:
        return path
    return REAL_PROCESSES + ("fleet" if FLEET in text else path)


def next_scope(waiting: Iterable[str], at_work: Iterable[str]) -> str:
    """The first that waits; while others are at work on real processes, the first without any, if there is one."""
    waiting = list(waiting)
    if any(scope.startswith(REAL_PROCESSES) for scope in at_work):
        return next((scope for scope in waiting if not scope.startswith(REAL_PROCESSES)), waiting[0])
    return waiting[0]
