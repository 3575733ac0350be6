"""What `farflung plan` does, with all that it needs loaded."""

import json
from pathlib import Path

import torch
from rich.console import Console

from farflung.apps.plan.plan_file import PlanFile
from farflung.apps.plan.planning import make_plan
from farflung.apps.plan.sizes import sizes_of
from farflung.apps.plan.table import as_json, print_plan, start_text


def plan_it(plan: PlanFile, language: str, json_file: Path | None, run_file: Path | None) -> None:
    """Try what there is, print the answer, and write what was asked for.

    Raises:
        ValueError: the goal cannot be reached, and by how much.
    """
    torch.set_num_threads(1)
    sizes = sizes_of(plan.model)
    with Console(stderr=True).status("") as status:
        planned = make_plan(plan, sizes, tell=status.update)
    console = Console()
    print_plan(planned, language, console)
    if json_file is not None:
        json_file.write_text(json.dumps(as_json(planned), indent=1) + "\n", encoding="utf-8")
    if run_file is not None:
        run_file.write_text(start_text(planned.outcomes[0].start), encoding="utf-8")
