"""How well one byte per measurement tunes: an invented language with three seeds, and sentiment of film reviews.

python -m bench.onebyte_learning [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.onebyte_tuning import Setting, tuned_by_journal, tuned_in_floats
from bench.report import Report, bench_arguments
from farflung.apps.finetune.accuracy import Score, score
from farflung.apps.finetune.example import ExampleConfig, example_files
from farflung.apps.finetune.labelled import TuningTask, read_task

JOURNAL_BYTES_MAX = 16 * 1024
NUM_TEST = 8192
"""So that a tenth of a point is eight examples."""


def load(folder: Path) -> Any:
    """The base model of a folder."""
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def held_out(model: Any, task: TuningTask) -> Score:
    """Of the task's test examples."""
    assert task.test is not None
    return score(model, task.objective, task.test)


def measure_example(report: Report, seeds: range, setting: Setting) -> None:
    """Zero-shot, tuned by bytes and in floats, for each seed of model, texts and directions."""
    rows: list[tuple[object, ...]] = []
    accuracies: list[tuple[float, float, float]] = []
    largest, is_same = 0, True
    with tempfile.TemporaryDirectory() as cache:
        for seed in seeds:
            files = example_files(Path(cache), ExampleConfig(seed=seed, num_test=NUM_TEST))
            model = load(files.model)
            task = read_task(files.data, files.objective, AutoTokenizer.from_pretrained(files.model), model)
            base = partial(load, files.model)
            tuned = tuned_by_journal(base, task, setting.of(seed))
            floats = tuned_in_floats(base, task, setting.of(seed))
            zero, byte, real = (100 * (held_out(each, task).accuracy or 0.0) for each in (model, tuned.model, floats))
            accuracies.append((zero, byte, real))
            largest, is_same = max(largest, len(tuned.journal)), is_same and tuned.is_same
            rows.append((seed, *(f"{each:.2f}" for each in accuracies[-1]), tuned.num_entries, len(tuned.journal)))
    columns = ("seed", "zero-shot %", "one byte %", "floats %", "entries", "bytes of journal")
    report.table(f"Example, {setting.num_rounds} rounds of {setting.num_slots}", columns, rows)
    least = min(byte for _, byte, _ in accuracies)
    most = max(zero for zero, _, _ in accuracies)
    report.claim("example: accuracy before, highest of the seeds", "<= 62 %", f"{most:.1f} %", most <= 62)
    report.claim("example: accuracy after, lowest of the seeds", ">= 96 %", f"{least:.2f} %", least >= 96)
    report.claim(
        "example: bytes of the journal, at most", f"<= {JOURNAL_BYTES_MAX}", largest, largest <= JOURNAL_BYTES_MAX
    )
    below = sum(real - byte for _, byte, real in accuracies) / len(accuracies)
    report.claim(
        "example: points that bytes are below floats, mean of the seeds", "<= 0.3", f"{below:.2f}", below <= 0.3
    )
    report.claim("example: machines and replay hold the same bits", "yes", "yes" if is_same else "no", is_same)


def main(arguments: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    report = Report("onebyte_learning", {"quick": arguments.quick, "threads": 1})
    setting = Setting(num_slots=64, num_rounds=156, rate=3e-2, batch_size=64, is_exact=arguments.quick)
    measure_example(report, range(1 if arguments.quick else 3), setting)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main(bench_arguments(__doc__ or "").parse_args()))
