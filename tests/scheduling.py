"""Which of the processes that run the suite takes which tests: one a whole file, the same one all real processes."""

from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[1]
REAL_PROCESSES = "real processes"
MARKER = "pytest.mark.loopback"


class FilesTogether(LoadScopeScheduling):
    """What a file's tests share is made once, and at most one test of real processes runs at a time."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid.split("::", 1)[0])


def group_of(path: str) -> str:
    """Of a test file: its own, or the one of all files with tests of real processes or sockets."""
    return REAL_PROCESSES if MARKER in (ROOT / path).read_text(encoding="utf-8") else path
