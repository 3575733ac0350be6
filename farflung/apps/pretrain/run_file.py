"""The run file: what one pretraining run is made of, as dataclasses, read strictly and shown in full.

A key that is left out has the value that `farflung pretrain --show` prints.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from farflung.apps.pretrain.algorithms import ALGORITHM_SECTION, NAME_DEFAULT, AlgorithmSettings
from farflung.apps.pretrain.data_settings import DataSettings
from farflung.apps.pretrain.model_table import check_model_table
from farflung.apps.pretrain.training import TrainingSettings
from farflung.apps.runs.form import RunForm, Tables
from farflung.apps.runs.run import LoggingSettings, RunSettings, check_places, region_of
from farflung.apps.runs.sites import LinkSettings, RegionSettings

KIND = "pretrain"
DEFAULT_MODEL: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
"""A Llama small enough for a laptop; the tokenizer adds its vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationSettings:
    """[simulation]: what virtual time charges where a real run measures."""

    step_seconds: float = 0.25
    """One local step of a worker of speed 1."""

    def __post_init__(self) -> None:
        if not self.step_seconds > 0:
            raise ValueError("step_seconds must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainingSettings(RunSettings):
    """[run] of a pretraining run."""

    kind: str = KIND
    name: str = "pretraining"
    folder: str = "pretraining"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFile:
    """A whole run. `model` is a table of [model]: `path`, or the keys of a Hugging Face configuration."""

    run: PretrainingSettings = field(default_factory=PretrainingSettings)
    model: dict[str, Any] = field(default_factory=lambda: dict(DEFAULT_MODEL))
    data: DataSettings = field(default_factory=DataSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    algorithm: AlgorithmSettings
    regions: tuple[RegionSettings, ...]
    links: tuple[LinkSettings, ...] = ()
    simulation: SimulationSettings = field(default_factory=SimulationSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)

    @property
    def num_workers(self) -> int:
        """Workers that the file names; others may join."""
        return sum(len(region.speeds) for region in self.regions)

    def region(self, name: str) -> RegionSettings:
        """The region of that name."""
        return region_of(self.regions, name)

    @property
    def num_threads(self) -> int:
        """As `runs.run.Run`."""
        return self.training.num_threads

    @property
    def num_shards(self) -> int:
        """Parts into which the data is cut: one for each worker that may ever come."""
        return self.num_workers + len(self.regions) * self.training.joiners_max

    @property
    def num_steps(self) -> int:
        """Local steps of all workers together that the budget pays for."""
        return self.training.tokens // self.training.tokens_per_step


class PretrainForm(RunForm[RunFile]):
    """See `runs.form.RunForm`."""

    def usual(self, tables: Mapping[str, Any]) -> Tables:
        """Two regions on this machine."""
        regions = [{"name": "east", "workers": 2}, {"name": "west", "workers": 2}]
        links = [{"between": ["east", "west"], "bandwidth_mbit": 100.0, "latency_ms": 50.0}]
        return {
            "algorithm": {"name": NAME_DEFAULT},
            "regions": regions,
            "links": [] if "regions" in tables else links,
        }

    def without_file(self, tables: Tables) -> Tables:
        """A tiny model, a few minutes."""
        model = tables.get("model")
        if isinstance(model, dict) and not model.keys() & {"path", "model_type"}:
            return {**tables, "model": {**DEFAULT_MODEL, **model}}
        return tables

    def check(self, run: RunFile, *, is_simulated: bool) -> None:
        check_model_table(run.model)
        check_places(run, is_simulated=is_simulated)
        for region in run.regions:
            run.training.check_ranks(region.ranks_per_worker)
        if run.num_steps < 1:
            raise ValueError(
                f"training.tokens = {run.training.tokens} is less than one step, which takes "
                f"{run.training.tokens_per_step} tokens: raise it, or lower sequence_length or batch_size"
            )


PRETRAIN = PretrainForm(kind=KIND, run_type=RunFile, named={"algorithm": ALGORITHM_SECTION})
