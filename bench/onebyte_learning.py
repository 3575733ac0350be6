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
from transformers.utils import logging

from bench.onebyte_tuning import Setting, tuned_by_journal, tuned_in_floats
from bench.report import Report, bench_arguments
from bench.review_methods import Budget, Materials, measure_reviews
from bench.review_model import ReviewConfig
from farflung.apps.finetune.accuracy import Score, score
from farflung.apps.finetune.example import ExampleConfig, example_files
from farflung.apps.finetune.labelled import TuningTask, read_task

JOURNAL_BYTES_MAX = 16 * 1024
QUICK = Budget(num_rounds=4, adam_steps=30, lora_rounds=2, model=ReviewConfig(num_steps=20, num_common_words=2000))
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
            report.console.print(f"seed {seed}: {zero:.2f} %, one byte {byte:.2f} %, floats {real:.2f} %")
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
    logging.disable_progress_bar()
    is_quick = arguments.quick
    report = Report(
        "onebyte_learning", {"quick": is_quick, "exact": arguments.exact, "vectors": arguments.vectors is not None}
    )
    if arguments.part != "reviews":
        setting = Setting(num_slots=64, num_rounds=156, rate=3e-2, batch_size=64, is_exact=is_quick or arguments.exact)
        measure_example(report, range(1 if is_quick else 3), setting)
    if arguments.part != "example":
        if arguments.data is None:
            report.console.print("Film reviews left out: --data FOLDER with sst2_train, _dev and _test.tsv adds them")
        else:
            budget = Budget() if not is_quick else QUICK
            with tempfile.TemporaryDirectory() as folder:
                materials = Materials.read(arguments.data, arguments.vectors, arguments.cache or Path(folder), budget)
                measure_reviews(report, materials, budget)
    return report.finish(arguments)


def parser() -> argparse.ArgumentParser:
    """What one can ask for."""
    asked = bench_arguments(__doc__ or "")
    asked.add_argument("--part", choices=["both", "example", "reviews"], default="both")
    asked.add_argument("--exact", action="store_true", help="the example's projections from backward passes, as quick")
    asked.add_argument("--data", type=Path, metavar="FOLDER", help="sst2_train, _dev and _test.tsv: text, tab, 0 or 1")
    asked.add_argument("--vectors", type=Path, metavar="FILE", help="word vectors that the reviews' model begins from")
    asked.add_argument("--cache", type=Path, metavar="FOLDER", help="where the reviews' model is kept")
    return asked


if __name__ == "__main__":
    sys.exit(main(parser().parse_args()))
