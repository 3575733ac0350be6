"""What every worker of a run starts from: tokenizer, tokens, the model's first weights, and a trainer over them."""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from farflung.apps.capacity import choose_device
from farflung.apps.pretrain.data import Texts, choose_tokenizer, shard_of, shard_within, source_of
from farflung.apps.pretrain.model import check_length, config_of, new_model
from farflung.apps.pretrain.run_file import RunFile
from farflung.apps.pretrain.training import TrainingSettings
from farflung.apps.runs.cache import cache_of_this_machine
from farflung.apps.runs.seats import Seat, worker_seats
from farflung.learn.optimizer import NamedOptimizer
from farflung.learn.parameters import Tensors, fingerprint, named_parameters
from farflung.learn.stream import Shard, Tokens, TokenStream
from farflung.learn.tokenized import Report
from farflung.learn.tokenizer import fingerprint as tokenizer_fingerprint
from farflung.learn.trainer import Stream, Trainer

if TYPE_CHECKING:
    from farflung.apps.pretrain.group_trainer import GroupTrainer

PROBE_TOKENS = 1 << 20
"""Of each row of tokens so many at either end are compared between machines, and its length."""
CUDA_DTYPE = torch.bfloat16


@dataclass(frozen=True, slots=True)
class Materials:
    """Data and model of a run."""

    run: RunFile
    tokenizer: PreTrainedTokenizerBase
    texts: Texts
    group_trainer: "GroupTrainer | None" = None
    """Of the one seat that is taken here, if a group of processes sits on it."""

    @classmethod
    def gather(cls, run: RunFile, report: Report = lambda _: None) -> "Materials":
        """Load, tokenise (once per machine) and check.

        Raises:
            ValueError: data or model are missing, too small, or do not fit each other.
        """
        cache_folder = cache_of_this_machine()
        cache_folder.mkdir(parents=True, exist_ok=True)
        sources = list(dict.fromkeys(source_of(region, run.data) for region in run.regions))
        tokenizer = choose_tokenizer(run.data, run.model, sources, cache_folder)
        check_length(config_of(run.model, tokenizer), run.training.sequence_length)
        texts = Texts.load(
            run.regions,
            run.data,
            tokenizer,
            sequence_length=run.training.sequence_length,
            num_validation_sequences=run.training.num_validation_sequences,
            cache_folder=cache_folder,
            report=report,
        )
        return cls(run, tokenizer, texts)

    def check(self) -> None:
        """Try what every worker will do, before any is started.

        Raises:
            ValueError: the optimizer does not fit the model, or a worker would have no data.
        """
        for seat in worker_seats(self.run.regions, 0):
            self.stream_of(seat)
        NamedOptimizer(named_parameters(self.model()), self.run.training.optimizer)

    def model(self) -> PreTrainedModel:
        """A new copy of the model that all begin with."""
        return new_model(self.run.model, self.tokenizer, self.run.run.seed)

    @property
    def fingerprint(self) -> str:
        """Equal where data, tokenizer and first weights are equal."""
        digest = hashlib.sha256(tokenizer_fingerprint(self.tokenizer).encode())
        digest.update(fingerprint(named_parameters(self.model())))
        for region, tokens in self.texts.training.items():
            digest.update(f"{region}:{len(tokens)}".encode())
            for probe in (tokens[:PROBE_TOKENS], tokens[-PROBE_TOKENS:]):
                digest.update(probe.astype("<i8").tobytes())
        return digest.hexdigest()

    def trainer(self, seat: Seat) -> "Trainer | GroupTrainer":
        """A trainer for a worker's seat, at the beginning.

        Raises:
            ValueError: no data is left for this worker, or too few tokens.
        """
        if self.group_trainer is not None:
            return self.group_trainer
        training = self.run.training
        device = choose_device(training.device)
        model = self.model()
        model.to(device)  # pyright: ignore[reportArgumentType] - transformers wraps it
        parameters = named_parameters(model)
        return new_trainer(model, parameters, self.stream_of(seat), training, device, self.dropout_seed(seat))

    def dropout_seed(self, seat: Seat) -> str:
        """Every worker has its own."""
        return f"{self.run.run.seed}:{seat.name}"

    def stream_of(self, seat: Seat) -> TokenStream:
        """The samples that a worker's stream is opened with.

        Raises:
            ValueError: too few tokens.
        """
        return self.stream(seat, shard_of(seat, self.run.regions, self.run.num_shards))

    def stream(self, seat: Seat, shard: Shard) -> TokenStream:
        """The samples of a shard of the run, as workers of this seat's region read them."""
        run = self.run
        region = next(region for region in run.regions if region.name == seat.region)
        return TokenStream(
            self.texts.training[seat.region],
            run.training.sequence_length,
            run.training.batch_size,
            shard_within(shard, run.regions, region),
            seed=f"{run.run.seed}:data",
        )

    def validation_tokens(self) -> dict[str, Tokens]:
        """Held out, by region; regions that read the same are one."""
        found: dict[str, Tokens] = {}
        seen: set[object] = set()
        for region in self.run.regions:
            source = source_of(region, self.run.data)
            if source not in seen:
                seen.add(source)
                found[region.name] = self.texts.validation[region.name]
        return found


def new_trainer(
    model: torch.nn.Module,
    parameters: Tensors,
    stream: Stream,
    training: TrainingSettings,
    device: torch.device,
    dropout_seed: str,
) -> Trainer:
    """A trainer as [training] has it; `parameters` are those of `model`, which is on `device`."""
    return Trainer(
        model,
        NamedOptimizer(parameters, training.optimizer),
        stream,
        training.schedule.factor(),
        training.num_micro_batches,
        seed=dropout_seed,
        autocast=CUDA_DTYPE if device.type == "cuda" else None,
    )
