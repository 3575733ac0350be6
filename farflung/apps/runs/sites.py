"""[[regions]] and [[links]] of a run file: where workers are, and what lies between them."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from farflung.apps.runs.reader import check_known
from farflung.learn.sources import SourceConfig

REGION_NAME_LENGTH_MAX = 60

Parallelism = Literal["ddp", "fsdp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """One worker of a region."""

    speed: float = 1.0
    """Steps per time, relative to the other workers; a real run measures it anew."""
    is_remote: bool = False
    """True: it comes from another machine (`farflung join`), also where others of its region are started here."""

    def __post_init__(self) -> None:
        if not 0 < self.speed < math.inf:
            raise ValueError("speed must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionSettings:
    """A site: workers that are near to each other."""

    name: str
    workers: int | tuple[WorkerSettings, ...] = 1
    """How many of speed 1, or one table for each. 0 is for a region where an alignment run's trainer sits alone."""
    is_remote: bool = False
    """True: all its workers come from other machines (`farflung join`); none is started here."""
    ranks_per_worker: int = 1
    """Processes that are one worker together, each with its share of every batch and an accelerator of its own. A
    worker that joins from elsewhere has as many as it likes: by `farflung join --ranks`, or by `torchrun`. In a
    simulation they are one."""
    parallelism: Parallelism = "ddp"
    """What such processes are to each other: ddp (each has the model) or fsdp (each has a shard of it)."""
    data: SourceConfig | None = None
    """What its workers read; None: what [data] says."""
    servers: tuple[str, ...] = ()
    """Servers of the run that sit here: a fine-tuning run's standby and witness. Of a remote region they join as its
    workers do, each with the number of its seat; the others are started with the run."""

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= REGION_NAME_LENGTH_MAX or not self.name.isprintable() or "/" in self.name:
            raise ValueError(f"name must have 1 to {REGION_NAME_LENGTH_MAX} printable characters, no '/'")
        if isinstance(self.workers, int) and self.workers < 0:
            raise ValueError(f"region {self.name!r} cannot have {self.workers} workers")
        if self.ranks_per_worker < 1:
            raise ValueError(f"region {self.name!r} needs at least one rank per worker")

    @property
    def speeds(self) -> tuple[float, ...]:
        """One for each worker."""
        if isinstance(self.workers, int):
            return (1.0,) * self.workers
        return tuple(worker.speed for worker in self.workers)

    @property
    def are_remote(self) -> tuple[bool, ...]:
        """One for each worker."""
        if isinstance(self.workers, int):
            return (self.is_remote,) * self.workers
        return tuple(self.is_remote or worker.is_remote for worker in self.workers)

    @property
    def has_remote(self) -> bool:
        """Whether anything of it comes from other machines."""
        return self.is_remote or any(self.are_remote)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """What lies between two regions, the same both ways."""

    between: tuple[str, str]
    bandwidth_mbit: float
    """Megabits per second."""
    latency_ms: float = 0.0
    """Milliseconds one way."""
    loss: float = 0.0
    """Probability that a message is lost."""

    def __post_init__(self) -> None:
        if not self.bandwidth_mbit > 0:
            raise ValueError("bandwidth_mbit must be positive")
        if not 0 <= self.latency_ms < math.inf:
            raise ValueError("latency_ms must be finite and not negative")
        if not 0 <= self.loss < 1:
            raise ValueError("loss is a probability below 1")

    @property
    def bytes_per_second(self) -> float:
        return self.bandwidth_mbit * 1e6 / 8


def check_sites(regions: Sequence[RegionSettings], links: Sequence[LinkSettings], *, must_be_linked: bool) -> None:
    """Refuse regions and links that do not fit together.

    Raises:
        ValueError: no region, one named twice, a link to an unknown region or to itself, and (with `must_be_linked`)
            two regions without a link.
    """
    names = [region.name for region in regions]
    if not names:
        raise ValueError("a run needs at least one region: add [[regions]] with a name and workers")
    linked = check_pairs(names, [link.between for link in links], what="region")
    if must_be_linked:
        _check_linked(names, linked)


def check_pairs(names: Sequence[str], links: Sequence[tuple[str, str]], *, what: str) -> set[frozenset[str]]:
    """The pairs of places that links join.

    Raises:
        ValueError: a name given twice, a link to an unknown place or to itself, or two of one pair.
    """
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"there are two {what}s {name!r}: give each its own name")
    linked: set[frozenset[str]] = set()
    for index, between in enumerate(links):
        for name in between:
            check_known(name, names, f"links[{index}]", what=what)
        pair = frozenset(between)
        if len(pair) == 1:
            raise ValueError(f"links[{index}] joins {between[0]!r} with itself: a link is between two {what}s")
        if pair in linked:
            raise ValueError(f"there are two links between {between[0]!r} and {between[1]!r}: keep one")
        linked.add(pair)
    return linked


def _check_linked(names: Sequence[str], linked: set[frozenset[str]]) -> None:
    for one, other in itertools.combinations(names, 2):
        if frozenset((one, other)) not in linked:
            raise ValueError(
                f"regions {one!r} and {other!r} have no link, which a simulation needs: add [[links]] with "
                f'between = ["{one}", "{other}"], bandwidth_mbit and latency_ms'
            )
