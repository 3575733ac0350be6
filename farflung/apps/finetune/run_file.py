"""The run file of `farflung finetune`: which model learns what, how, and on which machines.

A key that is left out has the value that `farflung finetune --show` prints.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from farflung.apps.finetune.first_try import with_first_try
from farflung.apps.finetune.method import METHOD_SECTION, Method, OneByteSettings, name_in, name_of
from farflung.apps.finetune.settings import DataSettings, ObjectiveSettings
from farflung.apps.finetune.swarm.settings import SwarmSettings
from farflung.apps.runs.form import RunForm, Tables
from farflung.apps.runs.reader import apply_override, check_known, read_table
from farflung.apps.runs.run import LoggingSettings, RunSettings, check_places
from farflung.apps.runs.sites import LinkSettings, RegionSettings

KIND = "finetune"
PLACED_SERVERS = ("standby", "witness")
"""What may sit in a region of one's choice; the sequencer begins beside the lead, who takes the result from it."""
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuningSettings(RunSettings):
    """[run] of a fine-tuning run."""

    kind: str = KIND
    name: str = "finetuning"
    folder: str = "finetuning"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """[model]: what is tuned."""

    path: str = ""
    """A folder or Hub id of a causal language model; "": the small one of the example task."""
    dtype: str = "float32"
    """Type of its numbers: float32, bfloat16 or float16."""
    quantisation: Literal["", "int8", "nf4"] = ""
    """The base weights are those that codes of this form stand for."""
    tensors: tuple[str, ...] = ("all",)
    """Which are tuned: all, linear, attention, mlp, embedding, norm, or patterns of names; `-...` takes away."""
    is_written: bool = True
    """Leave the tuned model as a folder; False: the journal alone."""

    def __post_init__(self) -> None:
        check_known(self.dtype, DTYPES, "model.dtype", what="type of numbers")


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningSettings:
    """[training]: how long, on what share of the data at a time, and how it is watched."""

    rounds: int = 240
    batch_size: int = 64
    """Examples of a round, the same for all its slots."""
    evaluation_rounds: int = 10
    """Every so many rounds the first worker scores the model on held-out examples."""
    evaluation_examples: int = 256
    """So many of them; all at the end."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps or auto. Bytes of other kinds of processors differ by their rounding."""
    num_threads: int = 1
    """Of the processor, for each worker."""

    def __post_init__(self) -> None:
        for one in fields(self):
            if one.name != "device" and getattr(self, one.name) < 1:
                raise ValueError(f"{one.name} must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationSettings:
    """[simulation]: what virtual time charges where a real run measures."""

    slot_seconds: float = 0.05
    """One slot of a worker of speed 1."""

    def __post_init__(self) -> None:
        if not self.slot_seconds > 0:
            raise ValueError("slot_seconds must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneRun:
    """A whole run. `data` and `objective` are None for the example task."""

    run: FinetuningSettings = field(default_factory=FinetuningSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings | None = None
    objective: ObjectiveSettings | None = None
    training: TuningSettings = field(default_factory=TuningSettings)
    method: Method = field(default_factory=OneByteSettings)
    regions: tuple[RegionSettings, ...]
    links: tuple[LinkSettings, ...] = ()
    simulation: SimulationSettings = field(default_factory=SimulationSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)

    @property
    def num_threads(self) -> int:
        """As `runs.run.Run`."""
        return self.training.num_threads

    @property
    def is_onebyte(self) -> bool:
        """Whether machines tune together by single bytes."""
        return isinstance(self.method, OneByteSettings)

    @property
    def is_swarm(self) -> bool:
        """Whether it tunes through a swarm of block servers."""
        return isinstance(self.method, SwarmSettings)

    @property
    def swarm(self) -> SwarmSettings:
        """The method of such a run."""
        assert isinstance(self.method, SwarmSettings)
        return self.method

    @property
    def onebyte(self) -> OneByteSettings:
        """The method of such a run."""
        assert isinstance(self.method, OneByteSettings)
        return self.method

    @property
    def num_workers(self) -> int:
        """Workers that the file names; others may join."""
        return sum(len(region.speeds) for region in self.regions)


class FinetuneForm(RunForm[FinetuneRun]):
    """See `runs.form.RunForm`."""

    def usual(self, tables: Mapping[str, Any]) -> Tables:
        """Two regions on this machine, over a thin link."""
        links = [{"between": ["east", "west"], "bandwidth_mbit": 0.05, "latency_ms": 150.0}]
        return {
            "method": {},
            "regions": [{"name": "east", "workers": 1}, {"name": "west", "workers": 1}],
            "links": [] if "regions" in tables else links,
        }

    def override(self, tables: Tables, override: str) -> None:
        before = name_in(tables.get("method"))
        apply_override(tables, override)
        if (name := name_in(tables.get("method"))) != before:
            tables["method"] = {"name": name}  # what the file says about its own method is not about this one

    def completed(self, tables: Tables) -> Tables:
        if read_table(tables.get("model", {}), "model").get("path"):
            return tables
        return with_first_try(tables, str(name_in(tables["method"])))

    def check(self, run: FinetuneRun, *, is_simulated: bool) -> None:
        if is_simulated and not run.is_onebyte:
            where = "through servers that there are" if run.is_swarm else "on this machine alone"
            raise ValueError(
                f"{name_of(run.method)} computes {where}, so that there is nothing to simulate: leave out --simulate"
            )
        has_standby = run.is_onebyte and run.onebyte.has_standby
        check_places(run, is_simulated=is_simulated, servers=PLACED_SERVERS if has_standby else ())
        _check_task(run)
        if is_simulated and run.onebyte.shared_slots and run.num_workers < run.onebyte.num_needed:
            raise ValueError(
                f"a round needs {run.onebyte.num_needed} workers (method.participants_min), and nobody joins a "
                f"simulation: give regions with more workers"
            )


FINETUNE = FinetuneForm(kind=KIND, run_type=FinetuneRun, named={"method": METHOD_SECTION})


def _check_task(run: FinetuneRun) -> None:
    if run.model.path and run.data is None:
        raise ValueError("what is to be learned is missing: give [data] with train, a TSV or JSON Lines file")
    if not run.model.path and (run.data is not None or run.objective is not None):
        raise ValueError("which model is to learn this is missing: give [model] with path, a folder or Hub id")
    _check_swarm(run)
    is_shared = run.is_onebyte and run.onebyte.shared_slots
    objective = run.objective or ObjectiveSettings()
    if is_shared and run.data is not None and objective.kind == "labels" and not objective.label_words:
        raise ValueError(
            "no machine sees the labels of all others where data are private: name them in objective.label_words"
        )
    for region in run.regions:
        if region.ranks_per_worker > 1:
            raise ValueError("a worker of a fine-tuning run is one process: leave ranks_per_worker out, add workers")
        if region.data is not None:
            raise ValueError(f"region {region.name!r} has data of its own, which is for pretraining: give [data] alone")


def _check_swarm(run: FinetuneRun) -> None:
    """Refuse what only tuning through a swarm can do, where it is not that, and what it cannot."""
    kind = run.objective.kind if run.objective is not None else ""
    if not run.is_swarm:
        if run.objective is not None and run.objective.has_head:
            raise ValueError(
                f'objective.kind = "{kind}" trains a head beside the model, which methods lora and prompt do: give '
                f"--method lora"
            )
        return
    if kind == "reward":
        raise ValueError(
            'a reward has no gradient: choose method onebyte or mezo for objective.kind = "reward", or "preferences" '
            "to train a model of rewards"
        )
    if run.model.dtype != "float32" or run.model.quantisation or run.model.tensors != ("all",):
        raise ValueError(
            "servers decide how they hold the model's blocks, and [method] what is trained: leave dtype, quantisation "
            "and tensors out of [model]"
        )
