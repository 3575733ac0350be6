"""What rollout nodes and the hub beside the trainer say to each other.

All names begin with Align, as names of messages are unique over the whole program.

    worker --Join--------------> hub         who I am, which weights I hold
           <-Welcome-----------              what is agreed: settings, the newest version
           --Ask--------------->             I hold this version and have room for so many answers
           <-Leases------------              tasks, or why there are none, and which version they need
           --Done-------------->             rollouts and failures, on my disk until
           <-Taken-------------              they are on yours
           <-News--------------              there is a newer version (push; it is also in each Leases: pull), or tasks
           --PathAsk----------->             how do I come from what I hold to the newest version?
           <-Path--------------              these manifests in order, and who else has the chunks

    worker --ChunkAsk----------> anybody     of whom it is known that it has the version: hub or worker
           <-Chunk-------------
           --Holds-------------> hub         I run this version and can give its chunks; or: I could not get it, because

Every question carries a number, so that a late answer to an earlier one is known.
"""

import msgspec

from farflung.systems.alignment.rollouts import Failure, Rollout, Task
from farflung.wire.message import Message

HUB_ACTOR = "align"
TRAINER_ACTOR = "align-trainer"
WORKER_ACTOR = "align-worker"
SEEDER_ACTOR = "align-chunks"
"""Actor names of the hub, the trainer beside it, rollout workers, and who gives chunks beside hub and workers."""


class Canary(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A text and what a version thinks of it: shows that what was installed computes what it should."""

    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    """Of all tokens but the first."""


class ChunkRef(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A chunk by its content."""

    digest: bytes
    """SHA-256 of its bytes."""
    num_bytes: int


class Manifest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What makes one version of the weights out of nothing (an anchor) or out of another version (a delta)."""

    version: int
    weights_hash: bytes
    """Of all tensors: names, dtypes, shapes and values."""
    base_version: int
    """-1: none is needed."""
    base_hash: bytes
    layout: bytes
    """MessagePack of [(name, dtype, shape)], by name."""
    chunks: tuple[ChunkRef, ...]
    canary: Canary | None

    @property
    def is_anchor(self) -> bool:
        return self.base_version < 0

    @property
    def num_bytes(self) -> int:
        """To be fetched."""
        return sum(chunk.num_bytes for chunk in self.chunks)


class AlignJoin(Message, kw_only=True):
    """I want to sample for this run."""

    name: str
    """The same in all my lives."""
    code: str
    """Version of the program."""
    run: bytes
    """Fingerprint of what all must have in common: base model, tokenizer, environment, settings."""
    ask: int


class AlignWelcome(Message, kw_only=True):
    """You are in."""

    version: int
    """The newest that is published; -1: none yet."""
    ask: int


class AlignJoinAgain(Message, kw_only=True):
    """I do not know you: I have started anew."""

    name: str


class AlignAsk(Message, kw_only=True):
    """Give me something to sample."""

    name: str
    version: int
    """Of the weights that I hold; -1: none."""
    num_answers: int
    """Room for so many."""
    answers_per_second: float
    """Measured; 0: not yet."""
    round_trip_seconds: float
    """From the last question to its tasks; 0: not yet known."""
    running: tuple[tuple[int, int], ...]
    """(prompt, member) of all that I am at: their leases go on."""
    ask: int


class AlignLeases(Message, kw_only=True):
    """Tasks under lease: they go to somebody else when nothing is heard of them."""

    tasks: tuple[Task, ...]
    dropped: tuple[tuple[int, int], ...]
    """Of those that run there: not wanted any more."""
    version: int
    """The newest that is published."""
    version_min: int
    """Tasks are given for this version and newer ones only."""
    reason: str
    """Why there are none, or fewer than there is room for."""
    retry_after_seconds: float
    is_over: bool
    """The run has come to its end."""
    ask: int


class AlignDone(Message, kw_only=True):
    """Finished answers, and tasks that cannot be sampled here."""

    name: str
    rollouts: tuple[Rollout, ...]
    failures: tuple[Failure, ...]
    batch: int
    """Number under which the worker keeps them."""


class AlignTaken(Message, kw_only=True):
    """That batch is durable, or of no use to the run: forget it."""

    batch: int
    refused: tuple[tuple[int, int, str], ...]
    """(prompt, member, why) of those that are of no use."""


class AlignNews(Message, kw_only=True):
    """There is a newer version of the weights, or there are tasks for who had too few."""

    version: int
    """The newest that is published."""


class AlignChanged(Message, kw_only=True):
    """Hub to the trainer beside it: answers have arrived, or workers have come or gone."""


class AlignPathAsk(Message, kw_only=True):
    """How do I get the newest version?"""

    name: str
    version: int
    """Of the weights that I hold; -1: none, or none that I trust."""
    weights_hash: bytes
    ask: int


class AlignPath(Message, kw_only=True):
    """Apply these in order; the first one begins at what you hold, or at nothing."""

    manifests: tuple[Manifest, ...]
    """None: there is nothing newer."""
    holders: tuple[str, ...]
    """Peers that have the chunks of the last one, beside the hub."""
    ask: int


class AlignChunkAsk(Message, kw_only=True):
    """Give me this chunk."""

    digest: bytes


class AlignChunk(Message, kw_only=True):
    """It; empty: I do not have it."""

    digest: bytes
    data: memoryview


class AlignHolds(Message, kw_only=True):
    """What became of a new version here."""

    name: str
    version: int
    """That is installed."""
    failed_version: int
    """That could not be; -1: none."""
    reason: str
    """Why not."""
