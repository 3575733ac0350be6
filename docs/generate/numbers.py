"""What was measured against which baseline, from bench/RESULTS.md: the newest of each claim, misses included."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

AREAS: Mapping[str, Sequence[str]] = {
    "Serving": (
        "swarm_",
        "failover",
        "failing_swarm",
        "far_pipeline",
        "speculation",
        "prefix_cache",
        "placement",
        "server_memory",
        "offloading",
        "soak",
    ),
    "Pretraining": ("halos_", "desloc", "pretraining_"),
    "One byte per gradient": ("onebyte_",),
    "Alignment": ("alignment_", "echo_", "weight_sync"),
    "The network and the front door": (),
}
"""Where a benchmark is shown, by how its name begins; the last area has all others."""

PEERS = re.compile(
    r"DiLoCo|DynUpd|Local Adam|DDP|MeZO|LoRA-FedAvg|Adam\b|local generate|plain transformers|accelerate|offload"
    r"|published|best other|all others|one by one|Sequential|co-located"
)
"""Words by which a claim names what others do, or what is done without these systems."""
INTRODUCTION = (
    "Generated from `bench/RESULTS.md`. Each claim is a comparison with a baseline that was measured in the same run "
    "on the same machine, and its target was set before. Models are small, machines few: what counts is the ratio, "
    "not what a data centre reaches. The notes behind the figures are in that file."
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of the results."""

    date: str
    bench: str
    machine: str
    claim: str
    target: str
    measured: str
    holds: str

    @property
    def name(self) -> str:
        """Of the benchmark, without its settings."""
        return self.bench.split()[0]


def rows_of(results: str) -> list[Measured]:
    """All rows of the table of results, newest first.

    Raises:
        ValueError: a row that has not the columns of the table.
    """
    rows: list[Measured] = []
    for line in results.splitlines():
        if not re.match(r"\| \d{4}-\d{2}-\d{2} \|", line):
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if len(cells) != 8:
            raise ValueError(f"this row of results has {len(cells)} columns and not 8: {line}")
        date, bench, machine, _, claim, target, measured, holds = cells
        rows.append(Measured(date, bench, machine, claim, target, measured, holds))
    return rows


def newest(rows: Iterable[Measured]) -> list[Measured]:
    """Of each claim of a benchmark the first row, which is its newest."""
    first: dict[tuple[str, str], Measured] = {}
    for row in rows:
        first.setdefault((row.name, row.claim), row)
    return list(first.values())


def numbers_page(results: str) -> str:
    """The page, in Markdown: a count first, then a table for each area."""
    rows = newest(rows_of(results))
    kept = sum(row.holds in ("yes", "just") for row in rows)
    missed = sum(row.holds.lower() == "no" for row in rows)
    told = len(rows) - kept - missed
    parts = [
        "# Numbers\n",
        f"{INTRODUCTION}\n",
        f"Of {len(rows)} claims {kept} hold, **{missed} do not**, and {told} are told without a target of yes or no.\n",
        "## What does not hold\n",
        _table(row for row in rows if row.holds.lower() == "no"),
        "## Against other methods and programs\n",
        _table(row for row in rows if PEERS.search(row.claim)),
    ]
    left = rows
    for area, beginnings in AREAS.items():
        here = [row for row in left if not beginnings or row.name.startswith(tuple(beginnings))]
        left = [row for row in left if row not in here]
        parts += [f"## {area}\n", _table(here)]
    return "\n".join(parts)


def _table(rows: Iterable[Measured]) -> str:
    lines = ["| benchmark | claim | target | measured | holds |", "|---|---|---|---|---|"]
    lines += [
        f"| {row.bench}, {row.date}, {row.machine} | {row.claim} | {row.target} | {row.measured} | {row.holds} |"
        for row in rows
    ]
    return "\n".join([*lines, ""])
