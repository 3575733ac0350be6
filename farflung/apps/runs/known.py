"""Which runs this user has led on this machine: a small file for each in the home, so that the dashboard finds them."""

import contextlib
import hashlib
from pathlib import Path

from farflung.runtime.home import default_home

RUNS_FOLDER = "runs"
RUN_FILE, SUMMARY_FILE = "run.toml", "summary.json"
"""In the folder of a run: what it is, from its beginning, and what it has come to, at its end."""


def remember(folder: Path) -> None:
    """A run is kept in `folder`. A home that cannot be written to costs the run nothing."""
    path = folder.expanduser().absolute()
    name = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    with contextlib.suppress(OSError):
        (default_home() / RUNS_FOLDER).mkdir(parents=True, exist_ok=True)
        (default_home() / RUNS_FOLDER / name).write_text(f"{path}\n", encoding="utf-8")


def known_runs() -> list[Path]:
    """Folders of runs that are still there, the one that was begun last first."""
    kept = default_home() / RUNS_FOLDER
    if not kept.is_dir():
        return []
    folders = [Path(path.read_text(encoding="utf-8").strip()) for path in kept.iterdir() if path.is_file()]
    found = [folder for folder in folders if (folder / RUN_FILE).exists()]
    return sorted(found, key=lambda folder: (-(folder / RUN_FILE).stat().st_mtime, str(folder)))
