"""The plan file: sites, machines, links, a model and a goal, as dataclasses, read as strictly as run files are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from farflung.apps.plan.devices import device_named, nearest_device
from farflung.apps.plan.goals import GOALS, Goal, ServeGoal, check_not_negative, check_positive
from farflung.apps.plan.words import Sentence
from farflung.apps.runs.reader import apply_override, check_known, read, read_table, read_toml
from farflung.apps.runs.sites import check_pairs

MACHINES_MAX = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSettings:
    """[[sites]]: machines that are near to each other."""

    name: str
    bandwidth_mbit: float = 10_000.0
    """Between any two machines here."""
    round_trip_ms: float = 0.2

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a site needs a name")
        check_positive(self, "bandwidth_mbit")
        check_not_negative(self, "round_trip_ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSettings:
    """[[machines]]: equal ones of a site. What was not measured is looked up by the device."""

    site: str
    device: str
    """Such as "A100", "L4" or "cpu"; another name, if what is needed is given."""
    count: int = 1
    flops: float | None = None
    """Measured operations per second of large matrix products."""
    blocks_per_second: float | None = None
    """Measured, as `farflung status` shows it for this model: blocks that one token passes per second."""
    forward_tokens_per_second: float | None = None
    """Measured: tokens per second through one block, many at once."""
    train_tokens_per_second: float | None = None
    """Measured: tokens per second of a training step of this model, as a run's log shows them."""
    packed_bytes_per_second: float | None = None
    """Measured: bytes of a model's weights of which a trainer makes a new version per second,"""
    installed_bytes_per_second: float | None = None
    """and of which a rollout worker puts one together."""
    memory_gb: float | None = None
    price_per_hour: float = 0.0
    watts: float | None = None
    """Of one machine at work."""
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    """Of the weights that it serves; None: the device's own."""

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MACHINES_MAX:
            raise ValueError(f"count must be from 1 to {MACHINES_MAX}, not {self.count}")
        names = ("flops", "blocks_per_second", "forward_tokens_per_second", "train_tokens_per_second", "memory_gb")
        names += ("packed_bytes_per_second", "installed_bytes_per_second")
        for name in names:
            if getattr(self, name) is not None:
                check_positive(self, name)
        check_not_negative(self, "price_per_hour", *(["watts"] if self.watts is not None else []))
        if device_named(self.device) is None and None in (self.flops, self.memory_gb, self.dtype):
            raise ValueError(
                f"the device {self.device!r} is in no table here ({nearest_device(self.device)}): "
                "give flops, memory_gb and dtype"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """What lies between two sites, the same both ways."""

    bandwidth_mbit: float = 100.0
    round_trip_ms: float = 80.0
    price_per_gb: float = 0.0
    """Of what crosses it, either way."""

    def __post_init__(self) -> None:
        check_positive(self, "bandwidth_mbit")
        check_not_negative(self, "round_trip_ms", "price_per_gb")

    @property
    def bytes_per_second(self) -> float:
        return self.bandwidth_mbit * 1e6 / 8

    @property
    def one_way_seconds(self) -> float:
        return self.round_trip_ms / 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class BetweenSettings(LinkSettings):
    """[[links]]: of two sites by name."""

    between: tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFile:
    """A whole plan."""

    sites: tuple[SiteSettings, ...]
    machines: tuple[MachineSettings, ...]
    links: tuple[BetweenSettings, ...] = ()
    default_link: LinkSettings = field(default_factory=LinkSettings)
    """[default_link]: between sites that no [[links]] joins."""
    model: dict[str, Any]
    """[model]: path, or a Hugging Face configuration, or just parameters, layers and hidden_size."""
    kind: str
    """Of the goal."""
    goal: Goal
    remarks: tuple[Sentence, ...] = ()
    """What is to be said of figures that are not the file's."""

    def link(self, one: str, other: str) -> LinkSettings:
        """Between two different sites."""
        return next((link for link in self.links if set(link.between) == {one, other}), self.default_link)

    @property
    def site_names(self) -> list[str]:
        return [site.name for site in self.sites]


def load_plan(path: Path, overrides: tuple[str, ...] = ()) -> PlanFile:
    """Read a plan file.

    Raises:
        ValueError: a mistake in it, in one sentence.
    """
    return plan_of(plan_tables(path, overrides))


def plan_tables(path: Path | None, overrides: tuple[str, ...]) -> dict[str, Any]:
    """The tables of a plan file (None: of none) with values changed.

    Raises:
        ValueError: it cannot be read.
    """
    tables = read_toml(path) if path is not None else {}
    for override in overrides:
        apply_override(tables, override)
    return tables


def plan_of(tables: Mapping[str, Any]) -> PlanFile:
    """The plan that these tables describe.

    Raises:
        ValueError: as `load_plan`.
    """
    for name in tables:
        check_known(name, ["sites", "machines", "links", "default_link", "model", "goal"], "")
    for name in ("sites", "machines", "model", "goal"):
        if name not in tables:
            shown = f"[[{name}]]" if name in ("sites", "machines") else f"[{name}]"
            raise ValueError(f"the plan has no {shown}: see examples/plan.toml for what belongs there")
    goal = dict(read_table(tables["goal"], "goal"))
    if "kind" not in goal:
        raise ValueError(f'[goal] does not say what for: write kind = "serve" in it, or one of {", ".join(GOALS)}')
    kind = str(goal.pop("kind"))
    check_known(kind, GOALS, "goal.kind", what="goal")
    plan = PlanFile(
        sites=read(tuple[SiteSettings, ...], tables["sites"], "sites"),
        machines=read(tuple[MachineSettings, ...], tables["machines"], "machines"),
        links=read(tuple[BetweenSettings, ...], tables.get("links", []), "links"),
        default_link=read(LinkSettings, tables.get("default_link", {}), "default_link"),
        model=dict(read_table(tables["model"], "model")),
        kind=kind,
        goal=read(GOALS[kind], goal, "goal"),
    )
    _check_places(plan)
    return plan


def _check_places(plan: PlanFile) -> None:
    names = plan.site_names
    if not names or not plan.machines:
        raise ValueError("a plan needs at least one site and one machine")
    check_pairs(names, [link.between for link in plan.links], what="site")
    for index, machine in enumerate(plan.machines):
        check_known(machine.site, names, f"machines[{index}]", what="site")
    if isinstance(plan.goal, ServeGoal):
        for name in plan.goal.users_at:
            check_known(name, names, "goal.users_at", what="site")
    num_machines = sum(machine.count for machine in plan.machines)
    if num_machines > MACHINES_MAX:
        raise ValueError(f"a plan takes up to {MACHINES_MAX} machines, not {num_machines}")
