"""What a plan predicted beside what a pilot measured, row by row (pure)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from farflung.apps.plan.words import Sentence, said

Unit = Literal["s", "tokens/s", "B"]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure."""

    what: Sentence
    unit: Unit
    predicted: float
    measured: float

    @property
    def ratio(self) -> float:
        """Of what was measured to what was predicted."""
        return self.measured / self.predicted if self.predicted else float("inf") if self.measured else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The report of a pilot."""

    method: Sentence
    seconds: float
    """That were measured."""
    rows: tuple[Row, ...]
    remarks: tuple[Sentence, ...]
    """How it was done, and what it does not tell."""
    is_whole: bool = True
    """False: it was stopped."""


def verdict(comparison: Comparison) -> Sentence:
    """The report in one sentence."""
    if not comparison.rows:
        return said("pilot nothing", method=comparison.method)
    furthest = max(comparison.rows, key=_distance)
    key = "pilot verdict" if comparison.is_whole else "pilot stopped"
    return said(
        key, method=comparison.method, seconds=comparison.seconds, what=furthest.what, ratio=f"{furthest.ratio:.3g}"
    )


def _distance(row: Row) -> float:
    ratio = row.ratio
    return max(ratio, 1 / ratio) if ratio else float("inf")


def mean(values: Sequence[float]) -> float:
    """Of some values, of which there is at least one."""
    return sum(values) / len(values)
