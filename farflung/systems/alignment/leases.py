"""Who is at which answer: leases that end when nothing is heard of them, and second ones for what is late."""

from collections.abc import Iterable
from dataclasses import dataclass

from farflung.systems.alignment.config import AlignmentConfig

Key = tuple[int, int]
"""(prompt, member)."""
SMOOTHING = 0.2
"""Weight of the newest duration in the usual one."""


@dataclass(slots=True)
class _Lease:
    worker: str
    begun_at: float
    heard_at: float


class Leases:
    """All leases of a run. They are in no checkpoint: after a restart workers say what they are at."""

    def __init__(self, config: AlignmentConfig) -> None:
        self._config = config
        self._by_key: dict[Key, list[_Lease]] = {}
        self._seconds_usual = 0.0

    def __len__(self) -> int:
        """Answers that somebody is at."""
        return len(self._by_key)

    def is_free(self, key: Key) -> bool:
        """Nobody is at it."""
        return key not in self._by_key

    def begin(self, worker: str, key: Key, now: float) -> None:
        """A worker is given an answer to sample."""
        self._by_key.setdefault(key, []).append(_Lease(worker, now, now))

    def is_late(self, key: Key, worker: str, now: float) -> bool:
        """Whether one other worker is at it, and it should have come long ago."""
        leases = self._by_key.get(key, [])
        patience_seconds = self._config.hedge_factor * self._seconds_usual
        is_alone = len(leases) == 1 and leases[0].worker != worker
        return is_alone and 0 < patience_seconds < now - leases[0].begun_at

    def renew(self, worker: str, running: Iterable[Key], now: float) -> None:
        """A worker says all that it is at; its other leases are over."""
        at = dict.fromkeys(running)
        for key, leases in list(self._by_key.items()):
            self._set(key, [lease for lease in leases if lease.worker != worker or key in at])
        for key in at:
            mine = [lease for lease in self._by_key.get(key, []) if lease.worker == worker]
            if not mine:
                self.begin(worker, key, now)
            for lease in mine:
                lease.heard_at = now

    def end_all(self, worker: str) -> None:
        """A worker is not at anything any more."""
        for key in list(self._by_key):
            self.release(worker, key)

    def expire(self, now: float) -> list[Key]:
        """Answers whose holders have not been heard of for too long: they are free again."""
        freed: list[Key] = []
        for key, leases in list(self._by_key.items()):
            heard = [lease for lease in leases if now - lease.heard_at < self._config.lease_seconds]
            self._set(key, heard)
            freed += [] if heard else [key]
        return freed

    def doubt(self, worker: str, now: float) -> None:
        """The way to a worker broke: unless it is heard of soon its answers go to others."""
        latest = now - self._config.lease_seconds + self._config.silence_seconds
        for leases in self._by_key.values():
            for lease in leases:
                if lease.worker == worker:
                    lease.heard_at = min(lease.heard_at, latest)

    def release(self, worker: str, key: Key) -> None:
        """A worker is not at an answer any more."""
        self._set(key, [lease for lease in self._by_key.get(key, []) if lease.worker != worker])

    def end(self, key: Key, worker: str, now: float) -> None:
        """The answer came from this worker."""
        for lease in self._by_key.pop(key, []):
            if lease.worker == worker:
                seconds = now - lease.begun_at
                usual = self._seconds_usual or seconds
                self._seconds_usual = usual + SMOOTHING * (seconds - usual)

    def forget(self, key: Key) -> None:
        """Nobody is to be at it any more."""
        self._by_key.pop(key, None)

    def _set(self, key: Key, leases: list[_Lease]) -> None:
        if leases:
            self._by_key[key] = leases
        else:
            self._by_key.pop(key, None)
