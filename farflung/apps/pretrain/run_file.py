"""The run file: what one pretraining run is made of, as dataclasses, read strictly and shown in full.

A key that is left out has the value that `farflung pretrain --show` prints.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from farflung.apps.pretrain.algorithms import AlgorithmSettings, read_algorithm
from farflung.apps.pretrain.data import DataSettings
from farflung.apps.pretrain.model import check_model_table
from farflung.apps.pretrain.training import TrainingSettings
from farflung.apps.runs.reader import apply_override, check_known, read, read_table, read_toml
from farflung.apps.runs.run import LoggingSettings, RunSettings, check_kind, check_places, plain, region_of
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


SECTIONS = tuple(one.name for one in fields(RunFile))


def default_tables() -> dict[str, Any]:
    """The run without a file: two regions on this machine, a tiny model, a few minutes."""
    return {
        "algorithm": {"name": "farflung"},
        "regions": [{"name": "east", "workers": 2}, {"name": "west", "workers": 2}],
        "links": [{"between": ["east", "west"], "bandwidth_mbit": 100.0, "latency_ms": 50.0}],
    }


def load_run_file(path: Path | None, overrides: Sequence[str] = (), *, is_simulated: bool = False) -> RunFile:
    """The run of a TOML file (None: the default one) with `--set` values on top.

    Raises:
        ValueError: a mistake in it, in one sentence.
    """
    tables = {} if path is None else read_toml(path)
    for override in overrides:
        apply_override(tables, override)
    if path is None and isinstance(model := tables.get("model"), dict) and not model.keys() & {"path", "model_type"}:
        tables["model"] = {**DEFAULT_MODEL, **model}
    return run_from(tables, is_simulated=is_simulated)


def run_from(tables: Mapping[str, Any], *, is_simulated: bool = False) -> RunFile:
    """The run that these tables describe; what only the parts together tell is checked too.

    Raises:
        ValueError: as `load_run_file`.
    """
    defaults = default_tables()
    if "regions" in tables:
        defaults["links"] = []
    given = {**defaults, **tables}
    own = read_table(given.get("run", {}), "run")
    check_kind(own, KIND)
    for name in given:
        check_known(name, SECTIONS, "")
    run = RunFile(
        run=read(PretrainingSettings, own, "run"),
        model=dict(read_table(given.get("model", DEFAULT_MODEL), "model")),
        data=read(DataSettings, given.get("data", {}), "data"),
        training=read(TrainingSettings, given.get("training", {}), "training"),
        algorithm=read_algorithm(read_table(given["algorithm"], "algorithm")),
        regions=read(tuple[RegionSettings, ...], given["regions"], "regions"),
        links=read(tuple[LinkSettings, ...], given["links"], "links"),
        simulation=read(SimulationSettings, given.get("simulation", {}), "simulation"),
        logging=read(LoggingSettings, given.get("logging", {}), "logging"),
    )
    check_model_table(run.model)
    check_places(run, is_simulated=is_simulated)
    for region in run.regions:
        run.training.check_ranks(region.ranks_per_worker)
    if run.num_steps < 1:
        raise ValueError(
            f"training.tokens = {run.training.tokens} is less than one step, which takes "
            f"{run.training.tokens_per_step} tokens: raise it, or lower sequence_length or batch_size"
        )
    return run


def tables_of(run: RunFile) -> dict[str, Any]:
    """The full effective run, as the tables of its file; `run_from` of them is the same run."""
    return {name: plain(run.algorithm.table() if name == "algorithm" else getattr(run, name)) for name in SECTIONS}
