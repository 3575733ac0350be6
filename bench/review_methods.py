"""Sentiment of film reviews, tuned by each method from the same small model with rates chosen on the same examples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.onebyte_tuning import Setting, tuned_by_journal
from bench.report import Report
from bench.review_model import ReviewConfig, write_model
from farflung.apps.finetune.accuracy import score
from farflung.apps.finetune.baselines import adam, fedavg_lora, mezo
from farflung.apps.finetune.baselines.plan import Plan, Progress
from farflung.apps.finetune.baselines.settings import AdamSettings, FedAvgLoraSettings, MezoSettings
from farflung.apps.finetune.examples import read_examples
from farflung.apps.finetune.labelled import TuningTask, read_task
from farflung.apps.finetune.settings import DataSettings, ObjectiveSettings

OBJECTIVE = ObjectiveSettings(template="{text} it was", label_words={"1": "great", "0": "terrible"})
WORDS = ("it", "was", "great", "terrible")
TENSORS = ("all", "-*embed*")
"""All but the words' own vectors."""
FILE = "sst2_{}.tsv"
CLIENTS = 4
BYTE_RATES = (2.5e-3, 5e-3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long each method tunes."""

    num_rounds: int = 512
    num_slots: int = 8
    """Of equally many measurements, few in many rounds bring more here than many in few."""
    batch_size: int = 16
    adam_steps: int = 300
    lora_rounds: int = 20
    lora_steps: int = 5
    model: ReviewConfig = field(default_factory=ReviewConfig)

    @property
    def num_directions(self) -> int:
        """Measured by one byte, and by MeZO."""
        return self.num_rounds * self.num_slots


@dataclass(frozen=True, slots=True)
class Outcome:
    """One method with one setting."""

    model: Any
    num_forwards: int
    num_backwards: int
    num_bytes: int
    """Sent by all machines together; of one byte, the journal's."""


Attempt = Callable[[], Outcome]


@dataclass(frozen=True, slots=True)
class Materials:
    """The base model, and the examples with the ones to choose rates on, or those to judge on, held out."""

    load: Callable[[], Any]
    choosing: TuningTask
    judging: TuningTask

    @classmethod
    def read(cls, data: Path, vectors: Path | None, cache: Path, budget: Budget) -> Materials:
        """Pretrain the model unless the cache has it; only the texts of the training file are used for that."""
        content = repr([budget.model, None if vectors is None else vectors.stem]).encode()
        name = f"reviews-{hashlib.sha256(content).hexdigest()[:12]}"
        if not (cache / name).is_dir():
            texts = [example.text for example in read_examples(data / FILE.format("train"), 0, None)]
            write_model(cache / name, texts, WORDS, vectors, budget.model)
        load = partial(AutoModelForCausalLM.from_pretrained, cache / name)
        model, tokenizer = load(), AutoTokenizer.from_pretrained(cache / name)

        def task(held_out: str) -> TuningTask:
            train, test = (str(data / FILE.format(each)) for each in ("train", held_out))
            return read_task(DataSettings(train=train, test=test, text=0, label=1), OBJECTIVE, tokenizer, model)

        return cls(load, task("dev"), task("test"))

    def accuracy(self, model: Any, *, is_judging: bool) -> float:
        """Percent right of the held-out examples."""
        task = self.judging if is_judging else self.choosing
        assert task.test is not None
        return 100 * (score(model, task.objective, task.test).accuracy or 0.0)


def methods(materials: Materials, budget: Budget) -> dict[str, dict[str, Attempt]]:
    """For each method its settings by name; each tunes a fresh copy of the base model."""
    task = materials.choosing

    def one_byte(rate: float, *, is_exact: bool) -> Outcome:
        setting = Setting(
            num_slots=budget.num_slots,
            num_rounds=budget.num_rounds,
            rate=rate,
            batch_size=budget.batch_size,
            is_exact=is_exact,
            tensors=TENSORS,
        )
        tuned = tuned_by_journal(materials.load, task, setting, num_machines=1)
        forwards = budget.num_rounds if is_exact else 2 * tuned.num_entries
        return Outcome(tuned.model, forwards, budget.num_rounds if is_exact else 0, len(tuned.journal))

    def plan(num_rounds: int) -> Plan:
        return Plan(
            num_rounds=num_rounds, batch_size=budget.batch_size, seed="bench 0", tensors=TENSORS, decay="linear"
        )

    def by(tune: Callable[..., Any], num_rounds: int, settings: object) -> Outcome:
        told: list[Progress] = []
        model = tune(materials.load(), task, plan(num_rounds), settings, told.append)
        last = told[-1]
        return Outcome(model, last.num_forwards, last.num_backwards, last.num_bytes)

    def by_mezo(rate: float) -> Outcome:
        return by(mezo.tune, budget.num_directions, MezoSettings(learning_rate=rate))

    def by_lora(rate: float) -> Outcome:
        settings = FedAvgLoraSettings(num_clients=CLIENTS, local_steps=budget.lora_steps, learning_rate=rate)
        return by(fedavg_lora.tune, budget.lora_rounds, settings)

    return {
        "one byte": {f"{rate:g}": partial(one_byte, rate, is_exact=False) for rate in BYTE_RATES},
        "MeZO": {f"{rate:g}": partial(by_mezo, rate) for rate in (1e-3, 3e-3)},
        "one byte, exact": {f"{rate:g}": partial(one_byte, rate, is_exact=True) for rate in BYTE_RATES},
        "LoRA-FedAvg": {f"{rate:g}": partial(by_lora, rate) for rate in (3e-3, 1e-2)},
        "Adam": {
            f"{rate:g}": partial(by, adam.tune, budget.adam_steps, AdamSettings(learning_rate=rate))
            for rate in (1e-3, 3e-3)
        },
    }


def measure_reviews(report: Report, materials: Materials, budget: Budget) -> None:
    """Each method with the setting that does best on the examples to choose on, judged on others."""
    zero = materials.accuracy(materials.load(), is_judging=True)
    rows: list[Sequence[object]] = [("zero-shot", "", f"{zero:.1f}", 0, 0, 0)]
    found: dict[str, float] = {"zero-shot": zero}
    outcomes: dict[str, Outcome] = {}
    for method, attempts in methods(materials, budget).items():
        tried = {name: attempt() for name, attempt in attempts.items()}
        chosen = {name: materials.accuracy(each.model, is_judging=False) for name, each in tried.items()}
        report.console.print(f"{method}: " + ", ".join(f"{name} {value:.1f} %" for name, value in chosen.items()))
        best = max(chosen, key=lambda name: chosen[name])
        outcome = outcomes[method] = tried[best]
        found[method] = materials.accuracy(outcome.model, is_judging=True)
        counts = (outcome.num_forwards, outcome.num_backwards, outcome.num_bytes)
        rows.append((method, best, f"{found[method]:.1f}", *counts))
    columns = ("method", "rate", "accuracy %", "forward passes", "backward passes", "bytes")
    report.table(f"Film reviews, batches of {budget.batch_size}", columns, rows)
    ours, exact = found["one byte"], found["one byte, exact"]
    report.claim(
        "reviews: one byte is no worse than MeZO with as many forward passes",
        f">= {found['MeZO']:.1f} % - 1",
        f"{ours:.1f} % (zero-shot {zero:.1f} %)",
        ours >= found["MeZO"] - 1,
    )
    report.claim("reviews: exact projections are no worse", f">= {ours:.1f} % - 1", f"{exact:.1f} %", exact >= ours - 1)
    others = f"{found['LoRA-FedAvg']:.1f} % (Adam {found['Adam']:.1f} %)"
    times = outcomes["LoRA-FedAvg"].num_bytes / outcomes["one byte"].num_bytes
    report.claim(
        f"reviews: fewer bytes than LoRA-FedAvg, which comes to {others}",
        ">= 100x",
        f"{times:.0f}x",
        times >= 100,
    )
