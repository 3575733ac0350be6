"""What tuning through a swarm starts from: the model's own files as far as the client needs them, and the examples."""

import hashlib
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from farflung.apps.finetune.labelled import TuningTask, read_task
from farflung.apps.finetune.materials import sources_of
from farflung.apps.finetune.rows import Rows
from farflung.apps.finetune.run_file import FinetuneRun
from farflung.apps.finetune.swarm.own import num_prompted_of, size_of
from farflung.apps.library import load_tokenizer
from farflung.learn.tokenizer import fingerprint as tokenizer_fingerprint
from farflung.model.source import ModelSource


@dataclass(frozen=True, slots=True)
class SwarmMaterials:
    """Model and data of a run; no block is loaded."""

    run: FinetuneRun
    source: ModelSource
    tokenizer: PreTrainedTokenizerBase
    task: TuningTask

    @classmethod
    def gather(cls, run: FinetuneRun) -> "SwarmMaterials":
        """Read and tokenize.

        Raises:
            ValueError: model or data are missing, or do not fit each other.
        """
        location, data, objective = sources_of(run)
        source = ModelSource.open(location)
        tokenizer: Any = load_tokenizer(source)
        materials = cls(run, source, tokenizer, read_task(data, objective, tokenizer, None))
        materials._check_lengths()
        size_of(run, source, materials.task)
        return materials

    def _check_lengths(self) -> None:
        num_prompted = num_prompted_of(self.run)
        longest = max(len(row) for row in self.task.train.tokens)
        if longest + num_prompted > self.source.context_length_max:
            before = f" with {num_prompted} trained ones before them" if num_prompted else ""
            raise ValueError(
                f"a text has {longest} tokens{before}, and {self.name} attends over {self.source.context_length_max}: "
                f"set objective.length_max = {max(2, self.source.context_length_max - num_prompted)}"
            )

    @property
    def name(self) -> str:
        """Of the base model, for people."""
        return "the example model" if self.run.data is None else self.source.name

    @property
    def fingerprint(self) -> str:
        """As `runs.job.Materials`."""
        digest = hashlib.sha256(tokenizer_fingerprint(self.tokenizer).encode())
        digest.update(self.source.fingerprint.encode())
        digest.update(repr(self.task.train.tokens).encode())
        return digest.hexdigest()

    @property
    def held_out(self) -> Rows:
        """Examples to score on: those of data.test, or if there are none those that are learned from."""
        return (self.task.test or self.task.train).first(self.run.training.evaluation_examples)

    @property
    def size(self) -> tuple[int, int]:
        """Values that are trained, and bytes of each."""
        return size_of(self.run, self.source, self.task), 4
