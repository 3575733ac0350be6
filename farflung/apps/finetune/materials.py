"""What every worker of a fine-tuning run starts from: model, tokenizer, examples, and the header of the journal."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msgspec import UNSET
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from farflung.apps.capacity import choose_device
from farflung.apps.finetune.example import example_files
from farflung.apps.finetune.labelled import TuningTask, read_task
from farflung.apps.finetune.method import OneByteSettings
from farflung.apps.finetune.rows import Rows
from farflung.apps.finetune.run_file import FinetuneRun
from farflung.apps.finetune.settings import DataSettings, ObjectiveSettings
from farflung.apps.finetune.sharing import Workload, noise_of
from farflung.apps.journal.base import load_base
from farflung.apps.runs.cache import cache_of_this_machine
from farflung.apps.runs.seats import Seat
from farflung.learn.parameters import fingerprint
from farflung.learn.tokenizer import fingerprint as tokenizer_fingerprint
from farflung.systems.onebyte.header import EXPONENT_MAX, RUN_ID_BYTES, Header, Schedule, schedule_of
from farflung.systems.onebyte.objective import Batch, Objective
from farflung.systems.onebyte.tensors import choose_tensors, chosen_parameters

EXPONENT = 24
"""With it a weight may move by 128, in steps of six millionths of a hundredth."""


@dataclass(frozen=True, slots=True)
class TuningMaterials:
    """Model and data of a run."""

    run: FinetuneRun
    location: str
    """Of the base model."""
    model: PreTrainedModel
    """The base model; who moves it takes a copy, unless nobody else needs it."""
    tokenizer: PreTrainedTokenizerBase
    task: TuningTask
    is_own: bool = False
    """The examples are this machine's alone."""

    @classmethod
    def gather(cls, run: FinetuneRun, own_data: Path | None = None) -> "TuningMaterials":
        """Load and tokenize. `own_data`: a file of this machine's own, to be learned from in place of the run's.

        Raises:
            ValueError: model or data are missing, or do not fit each other.
        """
        location, data, objective = sources_of(run)
        if own_data is not None:
            data = replace(data, train=str(own_data), test=None)
        model = load_base(location, run.model.dtype, run.model.quantisation)
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(location)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{location} has no tokenizer ({reason}): save it into the model's folder") from None
        task = read_task(data, objective, tokenizer, model)
        return cls(run, location, model, tokenizer, task, is_own=own_data is not None)

    @property
    def name(self) -> str:
        """Of the base model, for people."""
        return "the example model" if self.run.data is None else Path(self.location).name

    @property
    def fingerprint(self) -> str:
        """Equal where base model, tokenizer and training examples, unless they are private, are equal."""
        digest = hashlib.sha256(tokenizer_fingerprint(self.tokenizer).encode())
        digest.update(self.base)
        if not (self.run.is_onebyte and self.run.onebyte.shared_slots):
            for row in (self.task.train.tokens, self.task.train.answers):
                digest.update(repr(row).encode())
        return digest.hexdigest()

    @property
    def base(self) -> bytes:
        """Hash of the base model."""
        return fingerprint(dict(self.model.named_parameters()))

    def on_device(self, model: PreTrainedModel) -> PreTrainedModel:
        """A model, where the run computes."""
        model.to(choose_device(self.run.training.device))  # pyright: ignore[reportArgumentType] - transformers wraps it
        return model

    @property
    def size(self) -> tuple[int, int]:
        """Parameters that are tuned, and bytes of each."""
        chosen = chosen_parameters(self.model, choose_tensors(self.model, self.run.model.tensors)).values()
        return sum(tensor.numel() for tensor in chosen), next(iter(chosen)).element_size()

    @property
    def held_out(self) -> Rows:
        """Examples to score on: those of data.test, or if there are none those that are learned from."""
        return self.task.test or self.task.train

    def rows_of(self, seat: Seat) -> Rows:
        """Private data: what a worker learns from, a file of its own or its share of the lead's."""
        return self.task.train if self.is_own else self.task.train.share(seat.number, self.run.num_workers)

    def workload(self, num_examples: int | None = None) -> Workload:
        """Private data: of a worker with so many examples; None: with the fewest among those of the lead."""
        run, count = self.run, len(self.task.train) // self.run.num_workers if num_examples is None else num_examples
        return Workload(
            num_examples=count,
            batch_size=run.training.batch_size,
            num_slots=run.onebyte.num_slots,
            num_rounds=run.training.rounds,
        )

    def header(self, method: OneByteSettings, sequencer: bytes) -> Header:
        """Of the run's journal, which the key `sequencer` closes; the same whenever it is asked for.

        Raises:
            ValueError: a pattern that matches no tensor, or a learning rate that no exponent fits.
        """
        run, base = self.run, self.base
        tensors = choose_tensors(self.model, run.model.tensors)
        name = f"{run.run.seed}:{[tensor.name for tensor in tensors]}".encode()
        exponent, schedule = _schedule_of(method, run.training.rounds)
        return Header(
            run=hashlib.blake2b(base + name, digest_size=RUN_ID_BYTES, person=b"farflung run").digest(),
            base=base,
            base_name=self.name,
            dtype=run.model.dtype,
            tensors=tensors,
            quantisation=run.model.quantisation or UNSET,
            shared=method.shared_with(noise_of(method.privacy, self.workload()) if method.privacy else 0.0),
            direction=method.direction,
            epsilon=method.epsilon,
            exponent=exponent,
            schedule=schedule,
            num_slots=method.num_slots,
            staleness_rounds_max=method.staleness_rounds_max,
            sequencer=sequencer,
        )


def measured_data(
    run: FinetuneRun, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> tuple[Objective, Callable[[int], Batch]]:
    """What a run measures, and the batch of each of its rounds.

    Raises:
        ValueError: as `read_task`.
    """
    _, data, objective = sources_of(run)
    task = read_task(data, objective, tokenizer, model)
    return task.objective, batches_of(run, task)


def batches_of(run: FinetuneRun, task: TuningTask) -> Callable[[int], Batch]:
    """The batch of each round: for all its slots, and on every machine."""
    return task.batches(run.training.batch_size, f"{run.run.seed}:data")


def sources_of(run: FinetuneRun) -> tuple[str, DataSettings, ObjectiveSettings]:
    """Where the model lies, what it learns from, and what is to become small."""
    if run.data is not None:
        return run.model.path, run.data, run.objective or ObjectiveSettings()
    cache = cache_of_this_machine()
    cache.mkdir(parents=True, exist_ok=True)
    example = example_files(cache)
    return str(example.model), example.data, example.objective


def _schedule_of(method: OneByteSettings, num_rounds: int) -> tuple[int, Schedule]:
    """The exponent, and the learning rate in its units."""
    if method.exponent is not None:
        return method.exponent, _schedule_at(method, num_rounds, method.exponent)
    for exponent in sorted(range(EXPONENT_MAX + 1), key=lambda one: abs(one - EXPONENT)):
        try:
            return exponent, _schedule_at(method, num_rounds, exponent)
        except ValueError:
            continue
    raise ValueError(f"method.learning_rate = {method.learning_rate:g} cannot be told in steps of any power of two")


def _schedule_at(method: OneByteSettings, num_rounds: int, exponent: int) -> Schedule:
    return schedule_of(
        method.learning_rate,
        num_slots=method.num_slots,
        exponent=exponent,
        kind=method.decay,
        num_rounds=num_rounds if method.decay == "linear" else 0,
    )
