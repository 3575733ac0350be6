"""`python -m bench [ARGUMENTS]` runs every benchmark, one process each, and tells which failed."""

import subprocess
import sys
from pathlib import Path


def benchmarks() -> list[str]:
    """Names of the modules of this folder that measure something, sorted; its other programs take other arguments."""
    here = Path(__file__)
    candidates = sorted(here.parent.glob("*.py"))
    marks = ("bench_arguments(", '__name__ == "__main__"')
    return [path.stem for path in candidates if path != here and all(mark in path.read_text() for mark in marks)]


def main(arguments: list[str]) -> int:
    """Run them all; exit status 0 if every claim of every benchmark holds, else 1."""
    failed: list[str] = []
    for name in benchmarks():
        print(f"\n== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"bench.{name}", *arguments], check=False).returncode != 0:
            failed.append(name)
    if failed:
        print(f"\nClaims that do not hold, or runs that broke: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
