"""A run file of any kind, read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from farflung.apps.runs.form import RunForm
from farflung.apps.runs.job import KINDS, form_of
from farflung.apps.runs.reader import check_known, read_table, read_toml


def load(
    path: Path, kind: str | None, overrides: Sequence[str], environment: Mapping[str, str], *, is_simulated: bool
) -> tuple[RunForm[Any], Any]:
    """The form of the run's kind and the run itself; `kind`: that of a file which does not say its own.

    Raises:
        ValueError: a mistake in it, or nobody says of which kind it is.
    """
    said = read_table(read_toml(path).get("run", {}), "run").get("kind", kind)
    if said is None:
        raise ValueError(
            f'{path} does not say which command it is for: write kind = "pretrain" (or another of {", ".join(KINDS)}) '
            "below [run], or give --kind"
        )
    check_known(str(kind or said), KINDS, "run.kind" if kind is None else "--kind", what="kind of run")
    form = form_of(str(kind or said))
    return form, form.load(path, overrides, environment=environment, is_simulated=is_simulated)
