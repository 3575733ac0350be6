"""How fast processes of this machine do something, all at the same time: cores are shared as in a run."""

import queue
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from typing import Any

LOOK_SECONDS = 0.5
START_SECONDS_MAX = 300.0
"""Until all have loaded what they need."""

Measure = Callable[[dict[str, Any], int, Callable[[], object], float], Any]
"""Of a run file, the number of a process, what it calls when it is ready, and for how long: what it has found. A
function of a module, for it is called in a new process."""


def measured(measure: Measure, tables: dict[str, Any], num_processes: int, seconds: float, *, does: str) -> list[Any]:
    """What each process has found; `does`: what is measured, in words.

    Raises:
        ValueError: one of them has failed.
    """
    context = get_context("spawn")
    barrier, answers = context.Barrier(num_processes), context.Queue()
    processes = [
        context.Process(target=_measure, args=(measure, tables, number, barrier, seconds, answers), daemon=True)
        for number in range(num_processes)
    ]
    for process in processes:
        process.start()
    try:
        found = dict(_answer(answers, processes, does) for _ in processes)
    finally:
        for process in processes:
            process.terminate()
            process.join()
    return [found[number] for number in range(num_processes)]


def _measure(
    measure: Measure, tables: dict[str, Any], number: int, barrier: Barrier, seconds: float, answers: Any
) -> None:
    answers.put((number, measure(tables, number, partial(barrier.wait, START_SECONDS_MAX), seconds)))


def _answer(answers: Any, processes: Sequence[BaseProcess], does: str) -> tuple[int, Any]:
    while True:
        try:
            return answers.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            failed = [process.exitcode for process in processes if process.exitcode]
        if failed:
            raise ValueError(
                f"a process that measures {does} here ended with status {failed[0]}: is there too little memory for "
                f"{len(processes)} of them?"
            )
