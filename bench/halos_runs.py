"""Single runs of `halos_learning`, spread over processes, and kept line by line so that a stopped benchmark resumes."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.halos_cluster import site_bandwidths, topology
from bench.halos_methods import NUM_WORKERS, SETTINGS
from bench.pretraining_rounds import rounds_run, wire_bytes
from bench.pretraining_tree import tree_run
from bench.small_model import Examiner, Task, read_tokens
from farflung.apps.plan.curve import Curve, Point
from farflung.learn.parameters import num_bytes
from farflung.learn.stream import Tokens
from farflung.systems.desync.config import DesyncConfig
from farflung.systems.desync.learner import TrainerLearner
from farflung.systems.hierarchy.config import HierarchyConfig


@dataclass(frozen=True, slots=True)
class Job:
    """One run."""

    method: str
    number: int
    """Of the setting in the method's grid."""
    seed: int
    num_steps: int
    text: Path | None
    bandwidth: float = 1.0
    """Between regions, of the published."""
    is_compiled: bool = False
    """Whether the model is compiled, which takes half a minute of every process once."""

    @property
    def told(self) -> str:
        """For people."""
        return f"{self.method} ({SETTINGS[self.method][self.number].told}), seed {self.seed}"

    @property
    def key(self) -> str:
        """Equal for runs that come to the same, but for how a compiled model rounds."""
        setting = SETTINGS[self.method][self.number]
        told = [setting.config(self.num_steps).fingerprint, setting.has_global, self.seed, self.bandwidth]
        return _digest([str(part) for part in (*told, self.text)])

    @property
    def scale_key(self) -> str:
        """Equal for runs whose links are scaled alike; empty if by the bytes of the model."""
        config = SETTINGS[self.method][self.number].config(1)
        return _digest(["links", config.fingerprint]) if isinstance(config, DesyncConfig) else ""


def _digest(parts: list[str]) -> str:
    return hashlib.blake2b("|".join(parts).encode(), digest_size=12).hexdigest()


@functools.cache
def _tokens(text: Path | None) -> Tokens:
    return read_tokens(text)


@dataclass(frozen=True, slots=True)
class _Task:
    """Something for a process to do."""

    key: str
    job: Job
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def link_bytes(job: Job) -> int:
    """By how many bytes of a model the links of the job's method are scaled (see `wire_bytes`)."""
    config = SETTINGS[job.method][job.number].config(job.num_steps)
    assert isinstance(config, DesyncConfig), "trees need no scale of their own"
    model_bytes = num_bytes(Task(_tokens(job.text), 0, NUM_WORKERS).trainer(0).parameters)
    return wire_bytes(config, model_bytes // 4)


def train(job: Job, scaled: int = 0) -> Curve:
    """From the initial weights of the job's seed; if not a tree, over links scaled by `scaled` bytes of a model."""
    task = Task(_tokens(job.text), job.seed, NUM_WORKERS)
    setting, examiner = SETTINGS[job.method][job.number], Examiner(task)
    config = setting.config(job.num_steps)
    trainer = functools.partial(task.trainer, is_compiled=job.is_compiled)
    if isinstance(config, HierarchyConfig):
        run = tree_run(config, trainer, examiner.loss, has_global=setting.has_global, bandwidth=job.bandwidth)
        return run.run()
    config = replace(config, bytes_per_second=site_bandwidths(scaled, job.bandwidth))
    links = topology(scaled, job.bandwidth)
    return rounds_run(config, links, lambda shard: TrainerLearner(trainer(shard)), examiner.loss).run().curve


class Runs:
    """Makes runs, or takes those that `kept` has: a file of JSON lines, appended to after every run."""

    def __init__(self, processes: int, kept: Path | None) -> None:
        if processes < 1:
            raise ValueError(f"a benchmark needs at least 1 process, not {processes}")
        self._processes = processes
        self._kept = kept
        self._known: dict[str, Any] = {}
        if kept is not None and kept.exists():
            for line in kept.read_text().splitlines():
                entry = json.loads(line)
                self._known[entry["key"]] = entry["result"]

    def curves(self, jobs: Sequence[Job]) -> dict[Job, Curve]:
        """The results of all `jobs`."""
        missing = [job for job in jobs if job.key not in self._known]
        firsts = {job.scale_key: job for job in missing if job.scale_key}
        self._make("links", [_Task(key, job, link_bytes, (job,)) for key, job in firsts.items()])
        scales = {job: (self._known[job.scale_key],) if job.scale_key else () for job in missing}
        self._make("runs", [_Task(job.key, job, _points, (job, *scales[job])) for job in missing])
        return {job: Curve([Point(*point) for point in self._known[job.key]]) for job in jobs}

    def _make(self, title: str, tasks: Sequence[_Task]) -> None:
        tasks = [task for task in tasks if task.key not in self._known]
        if not tasks:
            return
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        pool = ProcessPoolExecutor(self._processes, mp_context=get_context("spawn"), initializer=_begin)
        try:
            with Progress(*columns) as progress:
                bar = progress.add_task(title, total=len(tasks))
                futures = {pool.submit(task.function, *task.arguments): task for task in tasks}
                for future in as_completed(futures):
                    task = futures[future]
                    self._keep(task, future.result())
                    progress.update(bar, advance=1, description=f"{title}: {task.job.told}")
        finally:
            pool.shutdown(cancel_futures=True)

    def _keep(self, task: _Task, result: object) -> None:
        self._known[task.key] = result
        if self._kept is not None:
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            with self._kept.open("a") as file:
                file.write(json.dumps({"key": task.key, "run": task.job.told, "result": result}) + "\n")


def _begin() -> None:
    torch.set_num_threads(1)


def _points(job: Job, scaled: int = 0) -> list[tuple[float, int, float]]:
    return [(point.seconds, point.num_steps, point.loss) for point in train(job, scaled).points]
