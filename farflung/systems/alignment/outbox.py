"""What a worker has finished and the hub has not yet taken: on the worker's disk, so that a crash loses no answer."""

import msgspec

from farflung.systems.alignment.leases import Key
from farflung.systems.alignment.messages import AlignDone
from farflung.systems.alignment.rollouts import Failure, Rollout
from farflung.world.doors import World

JOURNAL = "align-finished"
NUMBER_BITS, BATCHES_BITS = 40, 20


class _Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    number: int
    rollouts: tuple[Rollout, ...]
    failures: tuple[Failure, ...]


class Outbox:
    """Batches by number, sent until they are taken."""

    def __init__(self, world: World, name: str) -> None:
        """Raises:
        ValueError: what lies on the disk was not written by this program.
        """
        self._journal = world.journal(JOURNAL)
        self._name = name
        try:
            found = [msgspec.msgpack.decode(record, type=_Batch) for record in self._journal.records()]
        except msgspec.MsgspecError as error:
            raise ValueError(
                f"the finished answers on this disk are damaged ({error}): start in an empty home"
            ) from None
        self._batches = {batch.number: batch for batch in found}
        self._taken: set[int] = set()
        self._due_at: dict[int, float] = {}
        """Of batches that were sent: when to send them again."""
        # Numbers of a life are its own: a late word about a batch of an earlier one must not mean one of this.
        self._next_number = world.random(f"batches of {name}").getrandbits(NUMBER_BITS) << BATCHES_BITS

    def add(self, rollouts: tuple[Rollout, ...], failures: tuple[Failure, ...]) -> None:
        """Keep what is finished; it survives a crash once this has returned."""
        batch = _Batch(self._next_number, rollouts, failures)
        self._next_number += 1
        self._journal.append(msgspec.msgpack.encode(batch))
        self._journal.sync()
        self._batches[batch.number] = batch

    def next_due_at(self) -> float:
        """When there is something to send; infinity: never, as things are."""
        return min((self._due_at.get(number, float("-inf")) for number in self._batches), default=float("inf"))

    def due(self, now: float, silence_seconds: float) -> list[AlignDone]:
        """What was never sent, or so long ago that it or its answer is lost."""
        found: list[AlignDone] = []
        for number, batch in self._batches.items():
            if now >= self._due_at.get(number, now):
                self._due_at[number] = now + silence_seconds
                found.append(AlignDone(name=self._name, rollouts=batch.rollouts, failures=batch.failures, batch=number))
        return found

    def send_all_again(self, at: float) -> None:
        """Whoever they were sent to is gone, or has started anew: not before `at`."""
        self._due_at = dict.fromkeys(self._batches, at)

    def taken(self, number: int) -> int:
        """The hub has a batch: how many answers it had; 0 if that is known. It leaves the disk once all before it are
        gone too."""
        batch = self._batches.pop(number, None)
        if batch is None:
            return 0
        self._taken.add(number)
        self._due_at.pop(number, None)
        first = min(self._batches, default=self._next_number)
        done = [one for one in self._taken if one < first]
        if done:
            self._journal.drop(len(done))
            self._taken -= set(done)
        return len(batch.rollouts)

    def keys(self) -> list[Key]:
        """All answers in it."""
        return [rollout.key for batch in self._batches.values() for rollout in batch.rollouts]
