"""A fair queue: clients take turns, each client's jobs stay in order (pure)."""

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from farflung.world.address import PeerId

Job = TypeVar("Job")


@dataclass(slots=True)
class FairQueue(Generic[Job]):
    """Round robin over the clients that have something waiting."""

    num_jobs_max: int
    _waiting: dict[PeerId, deque[Job]] = field(default_factory=dict[PeerId, deque[Job]])
    _num_jobs: int = 0

    def __len__(self) -> int:
        return self._num_jobs

    @property
    def is_full(self) -> bool:
        return self._num_jobs >= self.num_jobs_max

    def push(self, client: PeerId, job: Job) -> None:
        """Append a job to its client's line. The caller has checked `is_full`."""
        self._waiting.setdefault(client, deque()).append(job)
        self._num_jobs += 1

    def pop(self) -> Job | None:
        """The next job; its client goes to the end of the round."""
        if not self._waiting:
            return None
        client = next(iter(self._waiting))
        line = self._waiting.pop(client)
        job = line.popleft()
        if line:
            self._waiting[client] = line
        self._num_jobs -= 1
        return job
