"""A plan as a table in the terminal, and as JSON."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from farflung.apps.plan.outcome import Outcome
from farflung.apps.plan.places import between_sites
from farflung.apps.plan.planning import Planned, assumptions, verdict
from farflung.apps.plan.units import bytes_of, number_of, time_of
from farflung.apps.plan.words import said

LINES_SHOWN_MAX = 60


def print_plan(planned: Planned, language: str, console: Console) -> None:
    """The verdict, the table, and what to start with."""
    console.print(Text(verdict(planned)(language), style="bold"))
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for title in columns(planned):
        table.add_column(title(language), overflow="fold")
    for number, outcome in enumerate(planned.outcomes, 1):
        table.add_row(*row(planned, number, outcome, language))
    console.print(table)
    for number, outcome in enumerate(planned.outcomes, 1):
        console.print(Text(f"{number}  {'; '.join(remarks(outcome, language))}"))
    for method, why in planned.left_out:
        console.print(Text(said("left out", method=method(language), why=why)(language)))
    for sentence in assumptions(planned.plan, planned.sizes):
        console.print(Text(sentence(language), style="dim"))
    best = planned.outcomes[0]
    console.print(Text(f"\n{said('start')(language)}: {best.start_name}".rstrip(": "), style="bold"))
    for line in best.start[:LINES_SHOWN_MAX]:
        console.print(Text(line), soft_wrap=True)


def columns(planned: Planned) -> list[Any]:
    """Titles of what `row` has."""
    is_serving = planned.plan.kind == "serve"
    named = ("time", "rate", "bytes", "cost", "energy")
    figures = [said(f"{name} serve" if is_serving and name != "rate" else name) for name in named]
    if not has_energy(planned):
        figures.pop()
    return [said("rank"), said("method"), said("machines"), said("meets"), *figures]


def remarks(outcome: Outcome, language: str) -> list[str]:
    """What limits it, what would help most, and how sure that is."""
    found = [f"{said('limit')(language)}: {outcome.limit(language)}"]
    if outcome.change.key != "not tried":
        found.append(f"{said('change')(language)}: {outcome.change(language)}")
    return [*found, f"{said('confidence')(language)}: {outcome.confidence(language)}"]


def has_energy(planned: Planned) -> bool:
    """Whether anybody said what machines draw."""
    return any(one.energy_kwh is not None for one in planned.outcomes)


def row(planned: Planned, number: int, outcome: Outcome, language: str) -> list[str]:
    """One outcome in words."""
    figures = [
        time_of(outcome.seconds),
        number_of(outcome.tokens_per_second),
        bytes_of(outcome.bytes_between_sites),
        f"{outcome.cost:,.2f}",
    ]
    if has_energy(planned):
        figures.append("" if outcome.energy_kwh is None else f"{outcome.energy_kwh:,.3g}")
    meets = said("yes" if outcome.meets else "no")(language)
    return [str(number), outcome.method(language), str(len(outcome.machines)), meets, *figures]


def as_json(planned: Planned) -> dict[str, Any]:
    """The same for programs."""
    return {
        "goal": planned.plan.kind,
        "verdict": verdict(planned)(),
        "outcomes": [_outcome(one) for one in planned.outcomes],
        "left_out": [{"method": method(), "why": why} for method, why in planned.left_out],
        "assumptions": [one() for one in assumptions(planned.plan, planned.sizes)],
    }


def _outcome(one: Outcome) -> dict[str, Any]:
    return {
        "method": one.method(),
        "machines": [machine.name for machine in one.machines],
        "meets_goal": one.meets,
        "seconds": one.seconds,
        "tokens_per_second": one.tokens_per_second,
        "bytes_between_sites": one.bytes_between_sites,
        "bytes": [{"from": way[0], "to": way[1], "bytes": num} for way, num in sorted(between_sites(one.sent).items())],
        "cost": one.cost,
        "energy_kwh": one.energy_kwh,
        "confidence": one.confidence(),
        "limit": one.limit(),
        "change": one.change(),
        "start_name": one.start_name,
        "start": list(one.start),
    }


def start_text(lines: Sequence[str]) -> str:
    """As the text of a file."""
    return "\n".join(lines) + "\n"
