"""What the benchmarks of hostile nodes and of privacy share: the example's model and data, ready to be tuned."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from farflung.apps.finetune.accuracy import score
from farflung.apps.finetune.example import example_files
from farflung.apps.finetune.labelled import TuningTask, read_task
from farflung.learn.parameters import fingerprint
from farflung.systems.onebyte.header import Header, schedule_of
from farflung.systems.onebyte.tensors import choose_tensors
from farflung.wire.identity import Identity

EXPONENT = 24
EPSILON = 2e-3
SEQUENCER = Identity(bytes([9]) * 32)


@dataclass(frozen=True)
class Example:
    """The example: a model that reads an invented language, and labels that have changed."""

    model: PreTrainedModel
    task: TuningTask

    @classmethod
    def load(cls) -> Example:
        """From the cache; made there, in some twenty seconds, at the first time."""
        torch.set_num_threads(1)
        files = example_files(Path(platformdirs.user_cache_dir("farflung")))
        model = AutoModelForCausalLM.from_pretrained(files.model)
        tokenizer = AutoTokenizer.from_pretrained(files.model)
        return cls(model, read_task(files.data, files.objective, tokenizer, model))

    def copy_of_model(self) -> PreTrainedModel:
        """The base model, to be tuned."""
        return copy.deepcopy(self.model)

    def header(self, *, num_slots: int, rate: float, seed: int = 0, **fields: object) -> Header:
        """Of a run that tunes all of it."""
        return Header(
            run=bytes([seed]) * 16,
            base=fingerprint(dict(self.model.named_parameters())),
            base_name="example",
            dtype="float32",
            tensors=choose_tensors(self.model, ["all"]),
            epsilon=EPSILON,
            exponent=EXPONENT,
            schedule=schedule_of(rate, num_slots=num_slots, exponent=EXPONENT),
            num_slots=num_slots,
            sequencer=SEQUENCER.public_key,
            **fields,  # pyright: ignore[reportArgumentType]
        )

    def accuracy(self, model: PreTrainedModel) -> float:
        """In percent, on what was held out."""
        assert self.task.test is not None
        found = score(model, self.task.objective, self.task.test, batch_size=512).accuracy
        assert found is not None
        return 100 * found
