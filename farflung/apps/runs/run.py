"""What the file of a run of any kind has: [run], [[regions]], [[links]] and [logging]."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, Protocol

from farflung.apps.runs.sites import LinkSettings, RegionSettings, check_sites
from farflung.runtime.log import start_logging

SHAPED_LATENCY_MS_MAX = 2000.0
"""A connection is opened in several round trips, and the libraries that do it give up after 20 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggingSettings:
    """[logging]: what is written beside the progress bars; the JSONL log is always written."""

    every_seconds: float = 2.0
    """How often each role reports (of virtual time, when simulated)."""
    tensorboard: bool | None = None
    """None: where it is installed."""
    wandb: bool = False
    trackio: bool = False
    project: str = "farflung"
    """Under which W&B and trackio file the run."""
    decisions: Literal["off", "text", "json"] = "off"
    """How all processes of the run log decisions to standard error; off: as --verbose and --log-format say."""

    def __post_init__(self) -> None:
        if not self.every_seconds > 0:
            raise ValueError("every_seconds must be positive")

    def start(self) -> None:
        """Let this process log decisions, if the file says so."""
        if self.decisions != "off":
            start_logging(self.decisions)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """[run]: its name, where it is kept, and the seed that everything random follows from.

    Each kind of run has its own defaults of the first three.
    """

    kind: str
    """Which command it is for."""
    name: str
    folder: str
    """Logs, what is needed to resume, the plot and what is left at the end; relative to where the command is given."""
    seed: int = 0
    is_shaped: bool = False
    """True: processes of this machine talk over links as slow as [[links]] say; else those only tell what is known."""

    def __post_init__(self) -> None:
        if not self.name or not self.folder:
            raise ValueError("name and folder must not be empty")


class Run(Protocol):
    """A run file, as far as all kinds have the same."""

    @property
    def run(self) -> RunSettings: ...
    @property
    def regions(self) -> tuple[RegionSettings, ...]: ...
    @property
    def links(self) -> tuple[LinkSettings, ...]: ...
    @property
    def logging(self) -> LoggingSettings: ...
    @property
    def num_threads(self) -> int:
        """Of the processor, for each seat."""
        ...


def check_kind(table: Mapping[str, Any], kind: str) -> None:
    """Refuse the [run] of another command's file.

    Raises:
        ValueError: names that command.
    """
    given = table.get("kind", kind)
    if given != kind:
        raise ValueError(f"this is the file of another kind of run: start it with `farflung {given}`")


def check_places(
    run: Run, *, is_simulated: bool, servers: Sequence[str] = (), first_may_be_empty: bool = False
) -> None:
    """Refuse regions and links that do not fit together, or not the way the run is to be done.

    `servers`: those of this kind of run that can be placed. `first_may_be_empty`: something else than a worker sits in
    the first region.

    Raises:
        ValueError: as `check_sites`, links that nothing here can shape, and servers that there are not, or twice.
    """
    for region in run.regions[1:] if first_may_be_empty and len(run.regions) > 1 else run.regions:
        if not region.speeds:
            raise ValueError(f"region {region.name!r} needs at least one worker")
    check_sites(run.regions, run.links, must_be_linked=is_simulated or run.run.is_shaped)
    placed = [name for region in run.regions for name in region.servers]
    for name in placed:
        if name not in servers:
            known = f"it has {' and '.join(servers)}" if servers else "its servers have their places"
            raise ValueError(f"this run has no server {name!r} that a region can name: {known}")
        if placed.count(name) > 1:
            raise ValueError(f"there is one {name}, and two regions name it: keep one")
    remote = [region.name for region in run.regions if region.has_remote]
    if run.run.is_shaped and remote:
        raise ValueError(
            f"run.is_shaped is for regions on this machine, and {remote[0]!r} has remote ones: leave it out"
        )
    slowest = max(run.links, key=lambda link: link.latency_ms, default=None)
    if run.run.is_shaped and slowest is not None and slowest.latency_ms > SHAPED_LATENCY_MS_MAX:
        raise ValueError(
            f"the link between {' and '.join(slowest.between)} has {slowest.latency_ms:g} ms one way, and real "
            f"connections are shaped to at most {SHAPED_LATENCY_MS_MAX:g}: try longer ones with --simulate"
        )


def region_of(regions: Sequence[RegionSettings], name: str) -> RegionSettings:
    """The region of that name."""
    return next(region for region in regions if region.name == name)


def plain(value: Any) -> Any:
    """Dataclasses as tables, without the keys that are left open (None): TOML has no word for nothing."""
    if is_dataclass(value) and not isinstance(value, type):
        return {
            one.name: plain(getattr(value, one.name)) for one in fields(value) if getattr(value, one.name) is not None
        }
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items() if inner is not None}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value
