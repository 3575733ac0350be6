"""[algorithm] of a run file: a name, the settings it stands for and keys that change them, as an engine has them."""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from farflung.apps.runs.form import Choice, NamedSection
from farflung.apps.runs.reader import check_known, read
from farflung.learn.optimizer_config import FIRST_MOMENT, SECOND_MOMENT, OptimizerConfig
from farflung.learn.rules import Descent, Nesterov, Rule
from farflung.systems.desync.config import DesyncConfig, farflung
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
    "farflung": {},
}

NAMES = (*HIERARCHICAL, *SYNCHRONOUS)
NAME_DEFAULT = "farflung"
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


RUN_KNOWS = ("num_worker_steps", "averages_gradients", "moment_decays", "bytes_per_second")
"""Settings of the rounds that follow from the name and from other sections."""
OWN_FIELDS: list[tuple[str, Any, Any]] = [
    ("moment_factors", dict[str, int], field(default_factory=dict[str, int])),
    ("moments_every", dict[str, int], field(default_factory=dict[str, int])),
    ("outer", OuterSettings, field(default_factory=OuterSettings)),
]
"""How many times rarer than the parameters each moment is averaged, or its own period; a moment that has neither never
is. And the outer step."""


def _settable() -> list[tuple[str, Any, Any]]:
    """Fields of the engine's own settings that a run file may give: one list of names, types and defaults."""
    hints = typing.get_type_hints(DesyncConfig)
    own = {name for name, _, _ in OWN_FIELDS}
    fields: list[tuple[str, Any, Any]] = []
    for one in dataclasses.fields(DesyncConfig):
        if one.name not in RUN_KNOWS and one.name not in own:
            is_made = one.default is dataclasses.MISSING
            default = field(default_factory=one.default_factory) if is_made else field(default=one.default)
            fields.append((one.name, hints[one.name], default))
    return fields


SynchronousSettings: Any = dataclasses.make_dataclass(
    "SynchronousSettings", [*OWN_FIELDS, *_settable()], frozen=True, kw_only=True, slots=True
)
"""What one can set on ddp, local_adam, diloco, diloco_dynamic, desloc and farflung; see `DesyncConfig`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlgorithmSettings:
    """A method by name, with all its settings."""

    name: str
    hierarchy: HierarchyConfig | None = None
    """Without the budget, which the run knows."""
    synchronous: Any = None
    """`SynchronousSettings`."""

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
        self,
        num_steps: int,
        optimizer: OptimizerConfig,
        bytes_per_second: Mapping[tuple[str, str], float],
        num_members_at_start: int,
    ) -> DesyncConfig:
        """The settings with the budget, the links and the number of workers that begin."""
        settings = self._synchronous
        is_ddp = self.name == "ddp"
        decays = {FIRST_MOMENT: optimizer.beta1, SECOND_MOMENT: optimizer.beta2}
        factors = {name: factor * settings.parameters_every for name, factor in settings.moment_factors.items()}
        periods = {} if is_ddp else factors | settings.moments_every
        for name in periods:
            check_known(name, decays, "algorithm", what="moment")
        same: dict[str, Any] = {name: getattr(settings, name) for name, _, _ in _settable()}
        rounds = settings.rounds
        members = max(rounds.num_members_at_start, num_members_at_start)
        same["rounds"] = dataclasses.replace(rounds, num_members_at_start=members)
        return DesyncConfig(
            num_worker_steps=num_steps,
            averages_gradients=is_ddp,
            moments_every={name: every for name, every in periods.items() if name in moments_of(optimizer)},
            moment_decays=decays,
            outer=settings.outer.rule(),
            bytes_per_second=bytes_per_second,
            **same,
        )

    @property
    def _synchronous(self) -> Any:
        assert self.synchronous is not None
        return self.synchronous


def _usual_farflung() -> dict[str, Any]:
    """What `farflung` stands for, as the engine says it."""
    usual = farflung(BUDGET_PLACEHOLDER)
    table = {name: getattr(usual, name) for name, _, _ in _settable() if name != "rounds"}
    return {**table, "moments_every": dict(usual.moments_every)}


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
    name = given.pop("name", NAME_DEFAULT)
    check_known(str(name), NAMES, "algorithm.name", what="algorithm")
    if name in SYNCHRONOUS:
        usual = _usual_farflung() if name == "farflung" else SYNCHRONOUS[name]
        settings = read(SynchronousSettings, {**usual, **given}, "algorithm")
        algorithm = AlgorithmSettings(name=name, synchronous=settings)
        try:
            algorithm.desync_config(BUDGET_PLACEHOLDER, OptimizerConfig(), {}, 1)
        except ValueError as error:
            raise ValueError(f"algorithm: {error}") from None
        return algorithm
    known = [one.name for one in dataclasses.fields(HierarchyConfig) if one.name not in RUN_DECIDES]
    for key in given:
        check_known(key, known, "algorithm")
    decided = {**HIERARCHICAL[name], **given, "budget_steps": BUDGET_PLACEHOLDER}
    return AlgorithmSettings(name=name, hierarchy=read(HierarchyConfig, decided, "algorithm"))


ALGORITHM_SECTION = NamedSection(
    read=read_algorithm,
    table=AlgorithmSettings.table,
    choices=(
        Choice(names=tuple(SYNCHRONOUS), settings=SynchronousSettings, explained_in=DesyncConfig),
        Choice(names=tuple(HIERARCHICAL), settings=HierarchyConfig, hidden=RUN_DECIDES),
    ),
    name_default=NAME_DEFAULT,
)
