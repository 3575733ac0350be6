"""The sessions of one block server: their caches, what each has applied, and how many tokens are promised."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from farflung.model.cache import SpanCache
from farflung.model.lowrank import Additions
from farflung.model.span import Span
from farflung.systems.swarm.lingering import Returns
from farflung.systems.swarm.messages import Output, Step
from farflung.wire.tensor import WireTensor
from farflung.world.address import Address, PeerId

IDLE_SECONDS = 2.0
"""A session that was not used for so long gives way to any other when room is short."""

SessionKey = tuple[str, int, int]
"""(session, first block, last block): one session may hold several spans of one server."""


@dataclass(slots=True)
class Pending:
    """A step that is being computed, in one piece or in several."""

    step: Step
    hidden_BTH: torch.Tensor
    position_ids_BT: torch.Tensor | None
    outputs: list[torch.Tensor] = field(default_factory=list[torch.Tensor])
    num_done: int = 0

    @property
    def num_left(self) -> int:
        return self.hidden_BTH.shape[1] - self.num_done


@dataclass(slots=True, eq=False, weakref_slot=True)
class ServerSession:
    """The part of a session that one span of a server holds. The compute thread owns `cache`, `mask`, `prompts` and
    `pending`."""

    key: SessionKey
    client: Address
    span: Span
    num_tokens_reserved: int
    cache: SpanCache
    mask: torch.Tensor | None = None
    """[batch, length] of the attention mask as far as the cache goes; None: no padding so far."""
    prompts: torch.Tensor | None = None
    adapter: str = ""
    additions: Additions | None = None
    """What the adapter of that name adds in its blocks."""
    pending: Pending | None = None
    is_plain: bool = True
    """Whether nothing is padding, positions count on, and nothing is added to hidden states."""
    number: int = 0
    """Of sessions in the order in which they were opened."""
    length: int = 0
    """Positions in the cache once everything accepted is computed."""
    batch_size: int = 0
    """Rows, likewise."""
    applied: int = 0
    """The newest step computed."""
    enqueued: int = 0
    """The newest step accepted."""
    newest_base: int = 0
    """The base of that step."""
    newest_output: Output | None = None
    """Kept to answer duplicates."""
    next_peer: PeerId | None = None
    """Where its outputs are pushed to."""
    used_at: float = 0.0
    asked_at: float = 0.0
    """When its client was last asked whether it still wants it."""
    returns: Returns = field(default_factory=Returns)
    is_closed: bool = False
    is_standby: bool = False
    """Another server computes for it; this one keeps up, and gives way to whoever needs the room."""

    @property
    def num_block_tokens(self) -> int:
        """Tokens that it holds once everything accepted is computed, times its blocks."""
        return self.length * self.batch_size * _num_blocks(self.key)

    def is_continued_by(self, step: Step) -> bool:
        """Whether a step is the next one."""
        return step.base == self.enqueued < step.upto and step.adapter == self.adapter

    def is_restarted_by(self, step: Step) -> bool:
        """Whether a step with base 0 asks to rebuild it, rather than being an old duplicate."""
        if step.upto == self.enqueued:
            return self.newest_base != 0
        return step.upto > self.enqueued


@dataclass(slots=True)
class SessionTable:
    """All sessions of a server, and the tokens they were promised; a token on k of n blocks counts k/n.

    More may be promised than there is: few sessions use all they ask for. A standby is promised nothing. What is really
    held, the pool of pages counts; when it is full, `victim_for` says whose cache gives way.
    """

    num_tokens_max: int
    num_blocks: int
    _sessions: dict[SessionKey, ServerSession] = field(default_factory=dict[SessionKey, ServerSession])
    _num_block_tokens: int = 0
    _num_opened: int = 0

    def __iter__(self) -> Iterator[ServerSession]:
        return iter(list(self._sessions.values()))

    def __len__(self) -> int:
        return len({session for session, _, _ in self._sessions})

    @property
    def num_tokens_left(self) -> int:
        """Tokens, over all blocks of the server, that are not promised yet."""
        return max(0, self.num_tokens_max - -(-self._num_block_tokens // self.num_blocks))

    def adapters(self) -> set[str]:
        """Names of the adapters that sessions use."""
        return {session.adapter for session in self._sessions.values()}

    def get(self, key: SessionKey) -> ServerSession | None:
        return self._sessions.get(key)

    def fits(self, num_tokens: int, num_blocks: int) -> bool:
        """Whether a session of `num_tokens` on `num_blocks` blocks could be held, if need be alone."""
        return num_tokens * num_blocks <= self.num_tokens_max * self.num_blocks

    def open(self, session: ServerSession) -> None:
        """Add a session; its tokens are promised."""
        assert session.key not in self._sessions
        self._num_opened += 1
        session.number = self._num_opened
        self._sessions[session.key] = session
        self._num_block_tokens += _num_promised(session)

    def promote(self, session: ServerSession) -> None:
        """A standby is a session like others from now on."""
        session.is_standby = False
        self._num_block_tokens += _num_promised(session)

    def grow(self, session: ServerSession, num_tokens: int) -> bool:
        """Promise a session more; False if it could not be held."""
        num_blocks = _num_blocks(session.key)
        if not self.fits(num_tokens, num_blocks):
            return False
        self._num_block_tokens -= _num_promised(session)
        session.num_tokens_reserved = max(num_tokens, session.num_tokens_reserved)
        self._num_block_tokens += _num_promised(session)
        return True

    def victim_for(self, needy: ServerSession, now: float) -> ServerSession | None:
        """Whose cache gives way so that `needy` can go on; None: nobody's now, it has to wait.

        Standbys come first, the newest of them. Then a client that holds over twice as much as the one in need gives
        its newest session. Else what was opened later gives way to what was opened earlier, so that the oldest always
        comes to its end; and what is not used now, to anybody.
        """
        others = [other for other in self if other is not needy and other.num_block_tokens > 0]
        standbys = [other for other in others if other.is_standby]
        if standbys:
            return max(standbys, key=lambda other: other.number)
        held: dict[PeerId, int] = {needy.client.peer: needy.num_block_tokens}
        for other in others:
            held[other.client.peer] = held.get(other.client.peer, 0) + other.num_block_tokens
        greediest = max(held, key=lambda client: held[client])
        if held[greediest] > 2 * held[needy.client.peer]:
            return max((other for other in others if other.client.peer == greediest), key=lambda other: other.number)
        younger = [other for other in others if other.number > needy.number]
        if younger:
            return max(younger, key=lambda other: other.number)
        idle = [other for other in others if now - other.used_at > IDLE_SECONDS]
        return min(idle, key=lambda other: other.used_at, default=None)

    def close(self, key: SessionKey) -> None:
        """Free a session."""
        session = self._sessions.pop(key, None)
        if session is not None:
            session.is_closed = True
            self._num_block_tokens -= _num_promised(session)

    def close_where(
        self, *, session: str | None = None, client: Address | None = None, client_peer: PeerId | None = None
    ) -> int:
        """Free all parts of a session, or all sessions of a client or of whatever runs on a peer; how many parts."""
        keys = [
            key
            for key, held in self._sessions.items()
            if session in (None, key[0]) and client in (None, held.client) and client_peer in (None, held.client.peer)
        ]
        for key in keys:
            self.close(key)
        return len(keys)


def _num_blocks(key: SessionKey) -> int:
    return key[2] - key[1]


def _num_promised(session: ServerSession) -> int:
    """Tokens times blocks."""
    return 0 if session.is_standby else session.num_tokens_reserved * _num_blocks(session.key)


def make_output(session: ServerSession, step: Step, hidden: WireTensor, seconds: tuple[float, float]) -> Output:
    """The answer to a step; `seconds` are (compute, queue)."""
    name, first, last = session.key
    return Output(
        session=name,
        first=first,
        last=last,
        base=step.base,
        upto=step.upto,
        hidden=hidden,
        compute_seconds=seconds[0],
        queue_seconds=seconds[1],
    )
