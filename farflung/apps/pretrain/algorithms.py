"""[algorithm] of a run file: a name, the settings it stands for and keys that change them, as an engine has them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from farflung.apps.pretrain.reader import check_known, read
from farflung.learn.optimizer import FIRST_MOMENT, SECOND_MOMENT, OptimizerConfig
from farflung.learn.rules import Descent, Nesterov, Rule
from farflung.systems.desync.config import DesyncConfig, RoundConfig
from farflung.systems.hierarchy.config import HierarchyConfig

HIERARCHICAL: dict[str, dict[str, Any]] = {
    "halos": {},
    # One parameter server for all regions; the values of HALoS's own comparison.
    "async_local_sgd": {
        "num_local_steps": 32,
        "local_learning_rate": 0.05,
        "local_momentum": 0.9,
        "local_delay": 32,
    },
}
"""What the names stand for where they differ from the engine's defaults."""

SYNCHRONOUS: dict[str, dict[str, Any]] = {
    "ddp": {"parameters_every": 1},
    "local_adam": {"moment_factors": {FIRST_MOMENT: 1, SECOND_MOMENT: 1}},
    "diloco": {"outer": {"learning_rate": 0.7, "momentum": 0.9}},
    "diloco_dynamic": {"outer": {"learning_rate": 0.7, "momentum": 0.9}, "is_speed_scaled": True, "weights": "steps"},
    "desloc": {"moment_factors": {FIRST_MOMENT: 3, SECOND_MOMENT: 6}},
    "farflung": {
        "outer": {"learning_rate": 0.7, "momentum": 0.9},
        "is_speed_scaled": True,
        "weights": "steps",
        "codec": "int4",
        "topology": "two-level",
        "is_overlapped": True,
    },
}

NAMES = (*HIERARCHICAL, *SYNCHRONOUS)
RUN_DECIDES = ("budget_steps", "num_shards")
"""Settings of the hierarchy that follow from other sections."""
BUDGET_PLACEHOLDER = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterSettings:
    """What is done with the mean delta of the parameters; momentum 0 and rate 1 is the plain mean."""

    learning_rate: float = 1.0
    momentum: float = 0.0

    def rule(self) -> Rule:
        return (
            Nesterov(learning_rate=self.learning_rate, momentum=self.momentum)
            if self.momentum
            else Descent(learning_rate=self.learning_rate)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SynchronousSettings:
    """What one can set on ddp, local_adam, diloco, diloco_dynamic, desloc and farflung; see `DesyncConfig`."""

    parameters_every: int = 32
    moment_factors: dict[str, int] = field(default_factory=dict[str, int])
    """How many times rarer than the parameters each moment is averaged; what is missing never is."""
    outer: OuterSettings = field(default_factory=OuterSettings)
    is_probabilistic: bool = False
    is_speed_scaled: bool = False
    weights: Literal["members", "steps", "tokens"] = "members"
    codec: str = "raw"
    site_codec: str = "raw"
    moment_codec: str = "raw"
    feedback_decay: float = 1.0
    topology: Literal["ring", "two-level"] = "ring"
    are_moments_local: bool = False
    is_overlapped: bool = False
    rounds: RoundConfig = field(default_factory=RoundConfig)

    def __post_init__(self) -> None:
        for name in self.moment_factors:
            check_known(name, (FIRST_MOMENT, SECOND_MOMENT), "algorithm.moment_factors", what="moment")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlgorithmSettings:
    """A method by name, with all its settings."""

    name: str
    hierarchy: HierarchyConfig | None = None
    """Without the budget, which the run knows."""
    synchronous: SynchronousSettings | None = None

    @property
    def is_hierarchical(self) -> bool:
        """Whether parameter servers run it, rather than rounds."""
        return self.hierarchy is not None

    def table(self) -> dict[str, Any]:
        """All keys, as a run file has them."""
        settings = asdict(self.hierarchy) if self.hierarchy is not None else asdict(self._synchronous)
        return {"name": self.name, **{key: value for key, value in settings.items() if key not in RUN_DECIDES}}

    def hierarchy_config(self, num_steps: int, num_shards: int) -> HierarchyConfig:
        """The settings with the budget and the cut of the data."""
        assert self.hierarchy is not None
        return dataclasses.replace(self.hierarchy, budget_steps=num_steps, num_shards=num_shards)

    def desync_config(
        self, num_steps: int, optimizer: OptimizerConfig, bytes_per_second: Mapping[tuple[str, str], float]
    ) -> DesyncConfig:
        """The settings with the budget and the links."""
        settings = self._synchronous
        is_ddp = self.name == "ddp"
        moments = (
            {}
            if is_ddp
            else {
                name: factor * settings.parameters_every
                for name, factor in settings.moment_factors.items()
                if name in moments_of(optimizer)
            }
        )
        same = {key: getattr(settings, key) for key in _SAME}
        return DesyncConfig(
            num_worker_steps=num_steps,
            averages_gradients=is_ddp,
            moments_every=moments,
            moment_decays={FIRST_MOMENT: optimizer.beta1, SECOND_MOMENT: optimizer.beta2},
            outer=settings.outer.rule(),
            bytes_per_second=bytes_per_second,
            **same,
        )

    @property
    def _synchronous(self) -> SynchronousSettings:
        assert self.synchronous is not None
        return self.synchronous


_SAME = tuple(
    one.name
    for one in dataclasses.fields(SynchronousSettings)
    if one.name in {other.name for other in dataclasses.fields(DesyncConfig)} and one.name != "outer"
)
"""Settings that the engine has under the same name."""


def moments_of(optimizer: OptimizerConfig) -> tuple[str, ...]:
    """The moments that an optimizer keeps."""
    if optimizer.name == "sgd":
        return (FIRST_MOMENT,) if optimizer.momentum else ()
    return (FIRST_MOMENT, SECOND_MOMENT)


def read_algorithm(table: Mapping[str, Any]) -> AlgorithmSettings:
    """The method that [algorithm] names, with the keys given there over those that the name stands for.

    Raises:
        ValueError: an unknown name or key (with the nearest known one), or an impossible value.
    """
    given = dict(table)
    name = given.pop("name", "halos")
    check_known(str(name), NAMES, "algorithm.name", what="algorithm")
    if name in SYNCHRONOUS:
        settings = read(SynchronousSettings, {**SYNCHRONOUS[name], **given}, "algorithm")
        algorithm = AlgorithmSettings(name=name, synchronous=settings)
        try:
            algorithm.desync_config(BUDGET_PLACEHOLDER, OptimizerConfig(), {})
        except ValueError as error:
            raise ValueError(f"algorithm: {error}") from None
        return algorithm
    known = [one.name for one in dataclasses.fields(HierarchyConfig) if one.name not in RUN_DECIDES]
    for key in given:
        check_known(key, known, "algorithm")
    decided = {**HIERARCHICAL[name], **given, "budget_steps": BUDGET_PLACEHOLDER}
    return AlgorithmSettings(name=name, hierarchy=read(HierarchyConfig, decided, "algorithm"))
