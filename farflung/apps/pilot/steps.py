"""How fast processes of this machine make training steps, all at the same time."""

import time
from collections.abc import Callable
from typing import Any

import torch

from farflung.apps.pilot.side_by_side import measured
from farflung.apps.pretrain.materials import Materials
from farflung.apps.pretrain.run_file import PRETRAIN
from farflung.apps.runs.seats import worker_seats

WARM_STEPS = 2


def steps_per_second(tables: dict[str, Any], seconds: float) -> list[float]:
    """Of each worker of a run file, measured for so long.

    Raises:
        ValueError: a mistake in the file, missing data, or a worker that could not be measured.
    """
    run = PRETRAIN.read(tables)
    Materials.gather(run).check()  # once, so that workers find it done
    return measured(_rate, tables, run.num_workers, seconds, does="training")


def _rate(tables: dict[str, Any], number: int, ready: Callable[[], object], seconds: float) -> float:
    run = PRETRAIN.read(tables)
    torch.set_num_threads(run.num_threads)
    materials = Materials.gather(run)
    trainer = materials.trainer(worker_seats(run.regions, 0)[number])
    trainer.run(WARM_STEPS, lambda _: 0.0)
    ready()
    began_at, num_steps = time.perf_counter(), 0
    while num_steps == 0 or time.perf_counter() < began_at + seconds:
        trainer.run(1, lambda _: 0.0)
        num_steps += 1
    return num_steps / (time.perf_counter() - began_at)
