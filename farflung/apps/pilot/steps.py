"""How fast processes of this machine make training steps, all at the same time."""

import queue
import time
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from typing import Any

import torch

from farflung.apps.pretrain.materials import Materials
from farflung.apps.pretrain.run_file import PRETRAIN
from farflung.apps.runs.seats import worker_seats

WARM_STEPS = 2
LOOK_SECONDS = 0.5
START_SECONDS_MAX = 300.0
"""Until all have loaded what they need."""


def steps_per_second(tables: dict[str, Any], seconds: float) -> list[float]:
    """Of each worker of a run file, measured for so long.

    Raises:
        ValueError: a mistake in the file, missing data, or a worker that could not be measured.
    """
    run = PRETRAIN.read(tables)
    Materials.gather(run).check()  # once, so that workers find it done
    context = get_context("spawn")
    barrier, answers = context.Barrier(run.num_workers), context.Queue()
    workers = [
        context.Process(target=_measure, args=(tables, number, seconds, barrier, answers), daemon=True)
        for number in range(run.num_workers)
    ]
    for worker in workers:
        worker.start()
    try:
        found = dict(_answer(answers, workers) for _ in workers)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    return [found[number] for number in range(run.num_workers)]


def _answer(answers: Any, workers: Sequence[BaseProcess]) -> tuple[int, float]:
    while True:
        try:
            return answers.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            failed = [worker.exitcode for worker in workers if worker.exitcode]
        if failed:
            raise ValueError(
                f"a process that measures training here ended with status {failed[0]}: is there too little memory for "
                f"{len(workers)} of them?"
            )


def _measure(tables: dict[str, Any], number: int, seconds: float, barrier: Barrier, answers: Any) -> None:
    run = PRETRAIN.read(tables)
    torch.set_num_threads(run.num_threads)
    materials = Materials.gather(run)
    trainer = materials.trainer(worker_seats(run.regions, 0)[number])
    trainer.run(WARM_STEPS, lambda _: 0.0)
    barrier.wait(START_SECONDS_MAX)
    began_at, num_steps = time.perf_counter(), 0
    while num_steps == 0 or time.perf_counter() < began_at + seconds:
        trainer.run(1, lambda _: 0.0)
        num_steps += 1
    answers.put((number, num_steps / (time.perf_counter() - began_at)))
