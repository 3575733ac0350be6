"""What `farflung plan` does, with all that it needs loaded."""

import json
import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from farflung.apps.plan.fleet import machines_of
from farflung.apps.plan.page import page_of
from farflung.apps.plan.plan_file import PlanFile
from farflung.apps.plan.planning import Tried, Try, TryAll, make_plan, one_by_one, try_one
from farflung.apps.plan.sizes import sizes_of
from farflung.apps.plan.table import as_json, print_plan, start_text

MACHINES_ALONE_MAX = 15
"""Of a plan that one process does sooner than others are started;"""
PROCESSES_MAX = 8
"""larger ones are done by so many."""


def plan_it(
    plan: PlanFile, language: str, json_file: Path | None, run_file: Path | None, html_file: Path | None
) -> None:
    """Try what there is, write what was asked for, and print the answer.

    Raises:
        ValueError: the goal cannot be reached, and by how much.
    """
    torch.set_num_threads(1)
    sizes = sizes_of(plan.model)
    with _bar() as bar, trying(plan) as try_all:
        planned = make_plan(plan, sizes, _counting(try_all, bar))
    if json_file is not None:
        json_file.write_text(json.dumps(as_json(planned), indent=1) + "\n", encoding="utf-8")
    if html_file is not None:
        html_file.write_text(page_of(planned, language), encoding="utf-8")
    if run_file is not None:
        run_file.write_text(start_text(planned.outcomes[0].start), encoding="utf-8")
    print_plan(planned, language, Console())


def _bar() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)


def _counting(try_all: TryAll, bar: Progress) -> TryAll:
    """The same, and the bar knows how many are done of how many."""
    task = bar.add_task("simulating", total=None)
    num_all = 0

    def try_and_count(tries: Sequence[Try]) -> Iterator[Tried]:
        nonlocal num_all
        num_all += len(tries)
        bar.update(task, total=num_all)
        for tried in try_all(tries):
            bar.advance(task)
            yield tried

    return try_and_count


@contextmanager
def trying(plan: PlanFile) -> Generator[TryAll]:
    """How candidates are tried: here, or for large plans by a process for each core."""
    num_processes = min(os.cpu_count() or 1, PROCESSES_MAX)
    if num_processes == 1 or len(machines_of(plan)) <= MACHINES_ALONE_MAX:
        yield one_by_one
        return
    pool = ProcessPoolExecutor(
        num_processes, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    )

    def side_by_side(tries: Sequence[Try]) -> Iterator[Tried]:
        futures = [pool.submit(try_one, one) for one in reversed(tries)]  # what takes longest comes last in the list
        return (future.result() for future in reversed(futures))

    try:
        yield side_by_side
    finally:
        pool.shutdown(cancel_futures=True)
