"""What every benchmark shares: its arguments, its claims, and the table and JSON file they end in."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table


def bench_arguments(description: str) -> argparse.ArgumentParser:
    """A parser with what all benchmarks take: ``--quick`` and ``--json FILE``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a smaller run that still measures every claim")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to FILE")
    return parser


@dataclass(frozen=True, slots=True)
class Claim:
    """One sentence that the run confirms or refutes."""

    claim: str
    target: str
    measured: str
    holds: bool


@dataclass(slots=True)
class Report:
    """The result of one benchmark: its settings, tables for people, and claims."""

    name: str
    settings: Mapping[str, object]
    claims: list[Claim] = field(default_factory=list)
    console: Console = field(default_factory=Console)

    def claim(self, text: str, target: object, measured: object, holds: bool) -> None:
        """Add one claim; `target` and `measured` are shown as they print."""
        self.claims.append(Claim(text, str(target), str(measured), bool(holds)))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print one table of details at once."""
        table = Table(*columns, title=title)
        for row in rows:
            table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row))
        self.console.print(table)

    def finish(self, arguments: argparse.Namespace) -> int:
        """Print the claims, write the JSON file if one is asked for; exit status 0 if every claim holds, else 1."""
        rows = [(claim.claim, claim.target, claim.measured, "yes" if claim.holds else "NO") for claim in self.claims]
        self.table(f"{self.name}: claims", ("claim", "target", "measured", "holds"), rows)
        if arguments.json is not None:
            result = {
                "name": self.name,
                "commit": commit(),
                "settings": dict(self.settings),
                "claims": [asdict(claim) for claim in self.claims],
            }
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(result, indent=2) + "\n")
        return 0 if all(claim.holds for claim in self.claims) else 1


def commit() -> str:
    """The commit of the code under test, marked when the tree has changes; "unknown" outside a repository."""
    folder = Path(__file__).parent
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"
