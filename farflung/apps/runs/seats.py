"""Seats: what a run needs, one process (or simulated node) for each, in a fixed order."""

from collections.abc import Sequence
from dataclasses import dataclass

from farflung.apps.runs.sites import RegionSettings

WORKER = "worker"
NUM_RANKS_VARIABLE = "WORLD_SIZE"
"""What `torchrun` tells every process of a group, among other things."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """One part of a run."""

    index: int
    """Its place among the seats of the run."""
    kind: str
    """`worker`, of which there may be any number, or what the engine calls one of its servers."""
    region: str
    speed: float = 1.0
    """Of a worker, relative to the others."""
    number: int = 0
    """Of a worker: its place among the workers, which decides the samples it reads."""
    is_remote: bool = False
    """Taken by `farflung join` on another machine; not started here."""
    num_ranks: int = 0
    """Processes that compute there together, if they are started here; 0: it is a server, which computes little."""

    @property
    def name(self) -> str:
        """For people, logs and file names: `east-worker-0`."""
        return f"{self.region}-worker-{self.number}" if self.kind == WORKER else f"{self.region}-{self.kind}"


def worker_seats(regions: Sequence[RegionSettings], first_index: int) -> list[Seat]:
    """A seat for each worker of the run file, region by region."""
    workers = [
        (region, speed, is_remote)
        for region in regions
        for speed, is_remote in zip(region.speeds, region.are_remote, strict=True)
    ]
    return [
        Seat(
            index=first_index + number,
            kind=WORKER,
            region=region.name,
            speed=speed,
            number=number,
            is_remote=is_remote,
            num_ranks=region.ranks_per_worker,
        )
        for number, (region, speed, is_remote) in enumerate(workers)
    ]
