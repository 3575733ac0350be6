"""`farflung journal diff`: where two journals part, and how alike their updates are."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from farflung.apps.journal.files import open_journal
from farflung.systems.onebyte.edit import num_common_rounds, require_addable, tensor_difference
from farflung.systems.onebyte.journal import JournalSection
from farflung.systems.onebyte.replay import tensor_names

SETTINGS = ("run", "epsilon", "exponent", "schedule", "direction", "generator", "num_slots", "coefficient_max")


def diff_journals(first: Path, second: Path, *, is_by_tensor: bool, is_unfinished_allowed: bool) -> None:
    """Print how two journals of one base model differ.

    Raises:
        ValueError: one is damaged, or they are about different models.
    """
    one = open_journal(first, is_unfinished_allowed=is_unfinished_allowed)
    other = open_journal(second, is_unfinished_allowed=is_unfinished_allowed)
    require_addable(one[0].header, other[0].header)
    console = Console()
    for number in range(max(len(one), len(other))):
        if number >= min(len(one), len(other)):
            longer = first if len(one) > len(other) else second
            console.print(f"Only {longer.name} has a run number {number + 1}.")
        else:
            _compare_runs(console, one[number], other[number], (first.name, second.name))
    if is_by_tensor:
        _compare_tensors(console, one, other)


def _compare_runs(console: Console, one: JournalSection, other: JournalSection, names: tuple[str, str]) -> None:
    differing = [name for name in SETTINGS if getattr(one.header, name) != getattr(other.header, name)]
    if differing:
        table = Table("setting", *names)
        for name in differing:
            table.add_row(name, *(_shown(getattr(each.header, name)) for each in (one, other)))
        console.print(table)
    num_common = num_common_rounds(one, other)
    totals = (one.ledger.num_rounds, other.ledger.num_rounds)
    if num_common == max(totals):
        console.print(f"Both hold the same {num_common} rounds.")
    else:
        console.print(
            f"The first {num_common} rounds are the same; then {names[0]} has {totals[0] - num_common} of its own and "
            f"{names[1]} {totals[1] - num_common}."
        )
    if one.ledger.revocations != other.ledger.revocations:
        console.print(
            f"{len(one.ledger.revocations)} revocations in {names[0]}, {len(other.ledger.revocations)} in {names[1]}."
        )


def _shown(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _compare_tensors(console: Console, one: list[JournalSection], other: list[JournalSection]) -> None:
    table = Table("tensor", "norm of the first update", "of the second", "cosine")
    for name in tensor_names([*one, *other]):
        found = tensor_difference(one, other, name)
        table.add_row(name, f"{found.first:.4g}", f"{found.second:.4g}", f"{found.cosine:.4f}")
    console.print(table)
