"""A pilot's report: a table in the terminal, JSON, and one HTML file that needs nothing else."""

from html import escape
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from farflung.apps.pilot.comparison import Comparison, Row, verdict
from farflung.apps.plan.page import document, item_list, plain_table
from farflung.apps.plan.units import bytes_of, number_of, time_of
from farflung.apps.plan.words import said

SPOKEN = {"s": time_of, "tokens/s": number_of, "B": bytes_of}


def print_comparison(comparison: Comparison, language: str, console: Console) -> None:
    """The verdict, the table, and how it was done."""
    console.print(Text(verdict(comparison)(language), style="bold"))
    table = Table(*titles(language), box=SIMPLE, padding=(0, 1, 0, 0))
    for row in comparison.rows:
        table.add_row(*cells(row, language))
    console.print(table)
    for sentence in comparison.remarks:
        console.print(Text(sentence(language), style="dim"))


def titles(language: str) -> list[str]:
    """Of the columns."""
    return [said(key)(language) for key in ("figure", "predicted", "measured value", "ratio")]


def cells(row: Row, language: str) -> list[str]:
    """One row in words."""
    spoken = SPOKEN[row.unit]
    return [row.what(language), spoken(row.predicted), spoken(row.measured), f"{row.ratio:.3g}"]


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The same for programs."""
    return {
        "method": comparison.method(),
        "verdict": verdict(comparison)(),
        "seconds": comparison.seconds,
        "is_whole": comparison.is_whole,
        "rows": [
            {
                "figure": row.what(),
                "unit": row.unit,
                "predicted": row.predicted,
                "measured": row.measured,
                "ratio": row.ratio,
            }
            for row in comparison.rows
        ],
        "remarks": [one() for one in comparison.remarks],
    }


def page_of(comparison: Comparison, language: str) -> str:
    """The whole page."""
    title = verdict(comparison)(language)
    parts = [
        f"<h1>{escape(title)}</h1>",
        plain_table(titles(language), [cells(row, language) for row in comparison.rows]),
        f"<h2>{escape(said('assumptions')(language))}</h2>",
        item_list([one(language) for one in comparison.remarks]),
    ]
    return document(title, parts, language)
