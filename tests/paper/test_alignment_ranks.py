"""Ranks of a trainer make the steps of one process: all weights or an adapter, whole on every rank or cut in shards."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.apps.aligned import write_align_run

pytestmark = pytest.mark.loopback

ROOT = Path(__file__).parents[2]
NUM_RANKS = 3
"""One more than the answers of the smallest step, so that one of them has nothing to do."""


def test_ranks_make_the_steps_of_one_process(tmp_path: Path) -> None:
    path = write_align_run(tmp_path, 5)
    command = [sys.executable, "-m", "tests.alignment_ranks", str(path), str(tmp_path), str(NUM_RANKS)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=400)
    found = json.loads((tmp_path / "distances.json").read_text())
    assert len(found) == 6
    for case, distances in found.items():
        assert max(distances.values()) < 1e-6, (case, distances)
        assert distances["end"] > 0, f"{case}: sums of thirds are rounded otherwise, so this compares nothing"
        assert {"loss", "mismatch", "gradient_norm", "survivor_length_ratio", "middle", "state"} <= distances.keys()
