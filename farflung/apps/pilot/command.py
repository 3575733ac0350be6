"""What `farflung pilot` does, with all that it needs loaded."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from farflung.apps.pilot.comparison import Comparison
from farflung.apps.pilot.report import as_json, page_of, print_comparison
from farflung.apps.pilot.serving import Miniature, compared
from farflung.apps.pilot.standing import Standing, predicted, standing, target_of
from farflung.apps.pilot.survey import Survey, Target, survey
from farflung.apps.plan.plan_file import plan_of
from farflung.apps.plan.swarm import look, plan_of_swarm
from farflung.apps.plan.words import said
from farflung.apps.runs.reader import check_known
from farflung.apps.tickets import find_ticket
from farflung.apps.wiring import Connection
from farflung.model.source import ModelSource

TRIED = ("serve", "pretrain", "finetune", "align")
"""Kinds of goals that have a miniature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the command line asks for."""

    ticket: str | None
    """Of the swarm; None: places are those of the tables."""
    tables: Mapping[str, Any]
    measure_seconds: float
    seconds: float
    method: str | None = None
    folder: Path | None = None
    language: str = "en"
    json_file: Path | None = None
    html_file: Path | None = None


def try_it(wish: Wish) -> None:
    """Measure, try, and report; what was measured before an interrupt is reported too.

    Raises:
        ValueError: a goal that cannot be tried, or not here, and why.
        FarflungError: the swarm cannot be reached, or refuses.
        KeyboardInterrupt: after the report.
    """
    torch.set_num_threads(1)
    kind = wish.tables.get("goal", {}).get("kind", "serve")
    check_known(kind, TRIED, "goal.kind", what="goal that a pilot tries")
    comparison = _serve(wish) if kind == "serve" else _run(wish, kind)
    _write(wish, comparison)
    if not comparison.is_whole:
        raise KeyboardInterrupt


def _run(wish: Wish, kind: str) -> Comparison:
    if kind == "pretrain":
        from farflung.apps.pilot.pretraining import tried
    elif kind == "finetune":
        from farflung.apps.pilot.finetuning import tried
    else:
        from farflung.apps.pilot.aligning import tried

    plan = plan_of(wish.tables) if wish.ticket is None else plan_of_swarm(wish.ticket, wish.tables)
    return tried(plan, wish.measure_seconds, wish.seconds, wish.method, wish.folder)


def _serve(wish: Wish) -> Comparison:
    if wish.method is not None:
        raise ValueError("--method is for jobs that are run: a serving swarm is tried as it stands")
    found = Survey()
    with Connection(find_ticket(wish.ticket)) as connection, _bar(wish) as tell:
        target = target_of(look(connection), _wanted(wish.tables))
        try:
            seen = connection.bridge.run(survey(connection, target, found, wish.measure_seconds, tell("measuring")))
        except KeyboardInterrupt:
            return Comparison(method=said("as it stands"), seconds=0.0, rows=(), remarks=(), is_whole=False)
        of = standing(wish.tables, seen, found, target)
        return _asked(connection, target, of, found, wish, tell)


def _asked(
    connection: Connection,
    target: Target,
    of: Standing,
    found: Survey,
    wish: Wish,
    tell: Callable[[str], Callable[[float], object]],
) -> Comparison:
    served = predicted(of)
    miniature, is_whole, clock = Miniature(connection, target, of.goal), True, connection.node.world.clock
    began_at = clock.now()
    try:
        connection.bridge.run(miniature.run(wish.seconds, tell("asking")))
    except KeyboardInterrupt:
        is_whole = False
    surveyed = said("pilot surveyed", count=len(found.blocks_per_second), servers=len(of.group.servers))
    users = said("pilot users", users=of.goal.users, client=of.goal.client_ms)
    remarks = (users, surveyed, said("pilot bytes"), *of.plan.remarks)
    return compared(served, miniature.asked, of.goal, clock.now() - began_at, remarks, is_whole=is_whole)


def _wanted(tables: Mapping[str, Any]) -> str | None:
    """The fingerprint of the model that a file names by its path; None: that of most servers is tried.

    Raises:
        ValueError: there is no such model.
    """
    path = tables.get("model", {}).get("path")
    return None if path is None else ModelSource.open(str(path)).fingerprint


@contextlib.contextmanager
def _bar(wish: Wish) -> Iterator[Callable[[str], Callable[[float], object]]]:
    """Gives, for a name, what hears of seconds gone by."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    lengths = {"measuring": wish.measure_seconds, "asking": wish.seconds}
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks = {name: bar.add_task(name, total=length, start=False) for name, length in lengths.items()}

        def tell(name: str) -> Callable[[float], object]:
            bar.console.print(f"{name} for {lengths[name]:g} s")
            bar.start_task(tasks[name])
            return lambda seconds: bar.advance(tasks[name], seconds)

        yield tell


def _write(wish: Wish, comparison: Comparison) -> None:
    if wish.json_file is not None:
        wish.json_file.write_text(json.dumps(as_json(comparison), indent=1) + "\n", encoding="utf-8")
    if wish.html_file is not None:
        wish.html_file.write_text(page_of(comparison, wish.language), encoding="utf-8")
    print_comparison(comparison, wish.language, Console())
