"""How fast processes of this machine measure directions of single bytes, all at the same time."""

import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

from farflung.apps.finetune.learners import public_learner
from farflung.apps.finetune.materials import TuningMaterials
from farflung.apps.finetune.run_file import FINETUNE
from farflung.apps.pilot.side_by_side import measured
from farflung.wire.identity import KEY_BYTES


def slots_per_second(tables: dict[str, Any], seconds: float) -> list[float]:
    """Of each worker of a run file, measured for so long.

    Raises:
        ValueError: a mistake in the file, missing data, or a worker that could not be measured.
    """
    run = FINETUNE.read(tables)
    TuningMaterials.gather(run)  # a mistake is told here, before processes are started
    return measured(_rate, tables, run.num_workers, seconds, does="fine-tuning")


def _rate(tables: dict[str, Any], number: int, ready: Callable[[], object], seconds: float) -> float:
    """With pieces of rounds as large as those that a sequencer gives to workers of one speed."""
    run = FINETUNE.read(tables)
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(run.num_threads)
    materials = TuningMaterials.gather(run)
    learner = public_learner(
        materials.header(run.onebyte, bytes(KEY_BYTES)), materials, materials.on_device(materials.model)
    )
    num_slots = max(1, run.onebyte.num_slots // run.num_workers)
    learner.measure(0, number * num_slots, min(num_slots, run.onebyte.directions_per_pass))
    ready()
    began_at, num_rounds = time.perf_counter(), 0
    while num_rounds == 0 or time.perf_counter() < began_at + seconds:
        learner.measure(num_rounds, number * num_slots, num_slots)
        num_rounds += 1
    return num_rounds * num_slots / (time.perf_counter() - began_at)
