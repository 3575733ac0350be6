"""What a block server announces to its swarm: which blocks, how fast, how full, and where it is about to move."""

from __future__ import annotations

import enum
import itertools
import math
from typing import NamedTuple

import msgspec

from farflung.systems.swarm.accounting import Work
from farflung.world.address import PeerId
from farflung.world.errors import PeerMisbehaved

MODEL_BLOCKS_MAX = 100_000
"""Whoever draws a model's blocks draws no more."""


class BlockRange(NamedTuple):
    """Blocks ``first`` to ``last - 1`` of a model, counted from 0."""

    first: int
    last: int

    @property
    def num_blocks(self) -> int:
        """How many blocks the range has (``len`` of the tuple itself is always 2)."""
        return self.last - self.first

    def contains(self, block: int) -> bool:
        """Whether `block` lies in the range."""
        return self.first <= block < self.last

    def covers(self, other: BlockRange) -> bool:
        """Whether every block of `other` lies in the range."""
        return self.first <= other.first and other.last <= self.last

    def overlap(self, other: BlockRange) -> int:
        """How many blocks the two ranges share."""
        return max(0, min(self.last, other.last) - max(self.first, other.first))

    def __str__(self) -> str:
        return f"{self.first}:{self.last}"

    @classmethod
    def parse(cls, text: str, num_blocks: int) -> BlockRange:
        """Read ``A:B`` (blocks A to B-1) for a model of `num_blocks` blocks.

        Raises ValueError with a sentence for the user when the text is no range or lies outside the model.
        """
        first_text, colon, last_text = text.strip().partition(":")
        if not (colon and first_text.isdecimal() and last_text.isdecimal()):
            raise ValueError(
                f"'{text}' is not a block range: write A:B, for example 0:{num_blocks} for the whole model."
            )
        blocks = cls(int(first_text), int(last_text))
        if blocks.first >= blocks.last:
            raise ValueError(f"The block range {text} is empty: its end must be larger than its start.")
        if blocks.last > num_blocks:
            raise ValueError(f"The block range {text} is outside the model, which has blocks 0:{num_blocks}.")
        return blocks


def equal_ranges(num_blocks: int, num_servers: int) -> list[BlockRange]:
    """A model of `num_blocks` in as many parts, first to last; there are at least as many blocks as parts."""
    assert 1 <= num_servers <= num_blocks, (num_servers, num_blocks)
    ends = [num_blocks * number // num_servers for number in range(num_servers + 1)]
    return [BlockRange(first, last) for first, last in itertools.pairwise(ends)]


class ServerState(enum.Enum):
    """What a server will do for a client now."""

    JOINING = "joining"
    """It has chosen its blocks and loads them: it counts for placement, not for routes."""
    ONLINE = "online"
    """It takes new sessions."""
    DRAINING = "draining"
    """It finishes the sessions it has and takes no new ones: it is about to move or to leave."""


class ServerInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One server's announcement; its signed record carries it as msgpack bytes.

    Construction and decoding refuse an empty range and rates that are not positive, so that no announcement can make
    a route or a plan out of nonsense.
    """

    model: str
    """Fingerprint of the weights: servers with different fingerprints never share a chain."""
    model_name: str
    """The name people use for the model."""
    blocks: BlockRange
    """The blocks served now (or being loaded, while JOINING)."""
    state: ServerState
    blocks_per_second: float
    """Blocks computed per second when decoding one token; also the throughput that placement balances."""
    forward_tokens_per_second: float
    """Tokens per second through one block in a forward of many tokens (prefill and training)."""
    cache_tokens_max: int
    """Tokens of attention cache it can hold over all its blocks; a session on k of n blocks takes k/n of its tokens."""
    cache_tokens_left: int
    """The part of `cache_tokens_max` not promised to a session."""
    queue_length: int = 0
    """Jobs waiting for its device."""
    job_seconds: float | None = None
    """Mean seconds of its recent jobs; None before the first: then one decode step of all its blocks is assumed."""
    num_sessions: int = 0
    dtype: str
    round_trip_seconds: dict[PeerId, float] = {}
    """Peer id -> round-trip time that this server measured."""
    started_at: float
    """Wall-clock time, seconds since 1970, at which the server process started."""
    leave_probability_per_second: float = 0.0
    """Chance to leave within a second, from its history; 0 when unknown."""
    is_pinned: bool = False
    """Its owner fixed the blocks: placement never moves it."""
    moving_to: BlockRange | None = None
    """The move lease: the range it claims and will serve next."""
    version: str
    """Version of the software it runs."""
    num_model_blocks: int = 0
    """Blocks of the whole model, so that blocks that nobody serves are known too; 0: not told."""
    work: Work = Work()
    """What its device has been used for."""

    def __post_init__(self) -> None:
        for blocks in (self.blocks, self.moving_to):
            if blocks is not None and not 0 <= blocks.first < blocks.last:
                raise ValueError(f"A server announced the impossible block range {blocks}.")
        if self.num_model_blocks and self.num_model_blocks < self.blocks.last:
            raise ValueError(f"A server announced blocks {self.blocks} of a model of {self.num_model_blocks} blocks.")
        if not 0 <= self.num_model_blocks <= MODEL_BLOCKS_MAX:
            raise ValueError(f"A server announced a model of {self.num_model_blocks} blocks.")
        if not (0 < self.blocks_per_second < math.inf and 0 < self.forward_tokens_per_second < math.inf):
            raise ValueError("A server announced a speed that is not a positive number.")
        if not 0 <= self.cache_tokens_left <= self.cache_tokens_max or self.queue_length < 0 or self.num_sessions < 0:
            raise ValueError("A server announced an impossible cache or queue.")
        if not 0 <= (self.job_seconds or 0.0) < math.inf or not 0 <= self.leave_probability_per_second < math.inf:
            raise ValueError("A server announced an impossible job time or leave probability.")
        if not all(0 <= seconds < math.inf for seconds in self.round_trip_seconds.values()):
            raise ValueError("A server announced a round-trip time that is not a positive number.")
        if not all(spent.is_possible for _, spent in self.work.kinds()):
            raise ValueError("A server announced an impossible amount of work.")

    def to_bytes(self) -> bytes:
        """The announcement as msgpack, for the body of a signed record."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def from_bytes(cls, data: bytes, peer: PeerId) -> ServerInfo:
        """Read the announcement of `peer`; raises PeerMisbehaved on anything that `to_bytes` cannot have written."""
        try:
            return msgspec.msgpack.decode(data, type=cls)
        except msgspec.DecodeError as error:
            raise PeerMisbehaved(peer, f"its announcement cannot be read: {error}") from error
