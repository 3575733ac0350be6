"""The block server (PETALS, section 3.1) as a role: steps of sessions in, hidden states out.

Invariants: a step is applied once, in order, however often it arrives; a session's tokens are promised once and freed
when its client closes it, vanishes or idles; a request that cannot be right is refused in a sentence and harms nobody.
"""

from collections.abc import Sequence
from dataclasses import replace

from farflung.model.pages import PageBudget, num_pages_for
from farflung.model.pool import CachePool
from farflung.model.span import Span
from farflung.systems.swarm import updates
from farflung.systems.swarm.adapter_store import AdapterJob, AdapterStore
from farflung.systems.swarm.checks import can_answer, check_request, check_step, follow
from farflung.systems.swarm.config import ServerConfig
from farflung.systems.swarm.engine import Engine
from farflung.systems.swarm.info import BlockRange, ServerInfo, ServerState
from farflung.systems.swarm.jobs import RequestJob, StepJob
from farflung.systems.swarm.leftovers import Leftovers
from farflung.systems.swarm.messages import (
    ACTOR,
    Attach,
    Backward,
    CloseSession,
    Forward,
    HandAdapter,
    Install,
    PushFailed,
    Step,
)
from farflung.systems.swarm.replies import behind, refuse, refuse_request, standing_by, working
from farflung.systems.swarm.sessions import ServerSession, SessionKey, SessionTable
from farflung.systems.swarm.updates import BROKEN, InstallJob, Updates
from farflung.wire.message import NoSuchActor
from farflung.world.address import Address, PeerId
from farflung.world.doors import Failed
from farflung.world.effects import Effect, Note, Run, Send, WakeAt
from farflung.world.errors import PeerMisbehaved
from farflung.world.role import Role

SWEEP_SECONDS = 5.0


class Server(Role):
    """Serves one span to many sessions (and, while it moves, finishes the sessions of the span it leaves)."""

    def __init__(self, config: ServerConfig, span: Span) -> None:
        self.config = config
        self._span = span
        self._leaving: list[Span] = []
        self.state = ServerState.ONLINE
        self.moving_to: BlockRange | None = None
        self._sessions = SessionTable(config.cache_tokens_max, span.last - span.first)
        self._budget = self._new_budget()
        self._pools: dict[tuple[int, int], CachePool] = {}
        self._engine = Engine(config, self._sessions)
        self._updates = Updates(config.owner)
        self._adapters = AdapterStore(config.adapter_bytes_max, config.limits)
        self._is_installing = False
        self._sweeps_at = 0.0
        self._leftovers = Leftovers()

    @property
    def blocks(self) -> BlockRange:
        """The blocks it offers."""
        return BlockRange(self._span.first, self._span.last)

    @property
    def num_sessions(self) -> int:
        return len(self._sessions)

    def info(self, round_trip_seconds: dict[PeerId, float], *, is_pinned: bool = False) -> ServerInfo:
        """What to announce now."""
        return ServerInfo(
            model=self.config.model,
            model_name=self.config.model_name,
            blocks=self.blocks,
            state=self.state,
            blocks_per_second=self.config.blocks_per_second,
            forward_tokens_per_second=self.config.forward_tokens_per_second,
            cache_tokens_max=self.config.cache_tokens_max,
            cache_tokens_left=self._sessions.num_tokens_left,
            queue_length=self._engine.queue_length,
            job_seconds=self._engine.job_seconds,
            num_sessions=len(self._sessions),
            dtype=str(self._span.dtype).removeprefix("torch."),
            round_trip_seconds=round_trip_seconds,
            started_at=self.config.started_at,
            is_pinned=is_pinned,
            moving_to=self.moving_to,
            version=self.config.version,
            num_model_blocks=self.config.num_model_blocks,
            work=self._engine.work,
        )

    def start(self, now: float) -> Sequence[Effect]:
        self._sweeps_at = now + SWEEP_SECONDS
        return [WakeAt(self._sweeps_at)]

    def receive(self, source: Address, message: object, now: float) -> Sequence[Effect]:
        self._leftovers.heard_of(source.peer)
        match message:
            case Step():
                return self._receive_step(source, message, now)
            case Forward() | Backward():
                return self._receive_request(source, message, now)
            case Install():
                return self._install(source, message)
            case HandAdapter():
                return [self._adapters.take(source, message, self._span, self._sessions.adapters)]
            case CloseSession(session=session):
                self._sessions.close_where(session=session, client_peer=source.peer)
                return ()
            case Attach():
                return ()
            case NoSuchActor():
                return self._nobody_there(source)
            case _:
                raise PeerMisbehaved(source.peer, f"a block server does not take {type(message).__name__} messages")

    def lost(self, peer: PeerId, reason: str, now: float) -> Sequence[Effect]:
        if any(session.client.peer == peer for session in self._sessions):
            self._leftovers.lost(peer, now)
        return self._push_failed(peer, reason)

    def _nobody_there(self, target: Address) -> Sequence[Effect]:
        """What was sent to `target` found no actor there: a server that has left, or a client that is done."""
        if target.actor == ACTOR:
            return self._push_failed(target.peer, "it serves no blocks now")
        self._sessions.close_where(client=target)
        return ()

    def _push_failed(self, peer: PeerId, reason: str) -> Sequence[Effect]:
        return [
            Send(session.client, PushFailed(session=session.key[0], next_peer=peer, reason=reason))
            for session in self._sessions
            if session.next_peer == peer
        ]

    def wake(self, now: float) -> Sequence[Effect]:
        """Free what nobody will come back for, and compute what was to wait until now."""
        effects = [*self._leftovers.sweep(self._sessions, self.config, now), *self._engine.run_next(now)]
        if now < self._sweeps_at:
            return effects
        self._sweeps_at = now + SWEEP_SECONDS
        return [*effects, WakeAt(self._sweeps_at)]

    def replace_span(self, span: Span, now: float) -> Sequence[Effect]:
        """Offer `span` from now on; sessions on the old one go on until they end."""
        self._leaving.append(self._span)
        self._span, self._budget, self._pools = span, self._new_budget(), {}
        return [Note(f"now serves blocks {self.blocks}")]

    def forget_left_spans(self) -> int:
        """Drop the spans it moved away from, with the sessions still on them (their clients replay elsewhere)."""
        num_closed = 0
        for session in self._sessions:
            if session.span is not self._span:
                self._sessions.close(session.key)
                num_closed += 1
        self._leaving.clear()
        return num_closed

    def _install(self, source: Address, message: Install) -> Sequence[Effect]:
        """Take a part of other weights; with the last one all sessions are over, for they have seen the old ones."""
        if message.model == self.config.model:
            return () if self._is_installing else [Send(source, updates.answer(message))]
        effect = self._updates.take(source, message, self._span)
        if isinstance(effect, Run):
            for session in self._sessions:
                self._sessions.close(session.key)
            self._budget, self._pools, self._is_installing = self._new_budget(), {}, True
            self.config = replace(self.config, model=message.model)
        return [effect]

    def _receive_step(self, source: Address, step: Step, now: float) -> Sequence[Effect]:
        if not can_answer(step):
            raise PeerMisbehaved(source.peer, "its step names no client that could be answered")
        problem = check_step(step, self.config.limits)
        if problem is not None:
            return [refuse(step, problem, is_fault_of_client=True)]
        key = (step.session, step.route[0].first, step.route[0].last)
        session = self._sessions.get(key)
        is_fresh_start = step.base == 0 and (session is None or session.is_restarted_by(step))
        is_continued = session is not None and session.is_continued_by(step)
        queue = self._engine.standby_queue if step.is_background else self._engine.queue
        if (is_fresh_start or is_continued) and queue.is_full:
            return [refuse(step, f"{len(queue)} steps are waiting here already", retry=1.0)]
        if is_fresh_start:
            opened = self._open(step, key, now)
            return self._accept(opened, step, now) if isinstance(opened, ServerSession) else [opened]
        if session is None:
            return [behind(step, 0)]
        if step.upto <= session.enqueued:
            return self._answer_again(session, step)
        if not is_continued:
            return [behind(step, session.enqueued)]
        return self._accept(session, step, now)

    def _open(self, step: Step, key: SessionKey, now: float) -> ServerSession | Effect:
        """A session that starts afresh, or the refusal to send."""
        first, last = key[1:]
        if step.model != self.config.model:
            return refuse(step, f"this server holds {self.config.model_name} with other weights")
        if self.state is not ServerState.ONLINE:
            return refuse(step, f"this server is {self.state.value} and takes no new sessions")
        if not (self._span.first <= first < last <= self._span.last):
            return refuse(step, f"this server holds blocks {self.blocks}, not {first}:{last}")
        self._sessions.close(key)
        if not self._sessions.fits(step.num_tokens_max, last - first):
            reason = f"{step.num_tokens_max} tokens are more than the {self.config.cache_tokens_max} of its cache"
            return refuse(step, reason, retry=2.0)
        if (additions := self._adapters.find(step.adapter, first, last)) is None and step.adapter:
            return refuse(step, "the adapter is not here", wants_adapter=True)
        expected = step.num_tokens_max // step.hidden.shape[0]
        session = ServerSession(
            key=key,
            client=Address(*step.client),
            span=self._span,
            num_tokens_reserved=step.num_tokens_max,
            cache=self._span.new_cache(first, last, pool=self._pool(first, last), num_tokens_expected=expected),
            used_at=now,
            adapter=step.adapter,
            additions=additions,
            is_standby=step.is_background,
        )
        self._sessions.open(session)
        return session

    def _new_budget(self) -> PageBudget:
        return PageBudget(num_pages_for(self.config.cache_tokens_max) * (self._span.last - self._span.first))

    def _pool(self, first: int, last: int) -> CachePool:
        """Where the caches of blocks [first, last) are."""
        for pool in self._pools.values():
            pool.shrink()
        if (first, last) not in self._pools:
            self._pools[first, last] = CachePool(last - first, self._budget)
        return self._pools[first, last]

    def _accept(self, session: ServerSession, step: Step, now: float) -> Sequence[Effect]:
        shape = follow(step, session.length, session.batch_size, self.config.limits)
        if isinstance(shape, str):
            self._sessions.close(session.key)
            return [refuse(step, shape, is_fault_of_client=True)]
        if not self._sessions.grow(session, step.num_tokens_max):
            self._sessions.close(session.key)
            return [refuse(step, f"the cache cannot grow to {step.num_tokens_max} tokens", retry=2.0)]
        if session.is_standby and not step.is_background:
            self._engine.promote(session)
        session.length, session.batch_size = shape
        session.enqueued, session.used_at, session.client = step.upto, now, Address(*step.client)
        session.newest_base = step.base
        if step.attention_mask is not None or step.position_ids is not None or step.prompts is not None:
            session.is_plain = False
        return self._engine.push(StepJob(session, step, now), now)

    def _answer_again(self, session: ServerSession, step: Step) -> Sequence[Effect]:
        """A duplicate: send what came of it, if it is the newest step; otherwise say where the session stands."""
        output = session.newest_output
        if output is not None and output.upto == step.upto and not step.is_background:
            return [*self._engine.push_onward(session, step, output), Send(Address(*step.client), output)]
        if step.upto > session.applied:
            return [working(step)]
        return [standing_by(step, session.applied)] if step.is_background else [behind(step, session.enqueued)]

    def _receive_request(self, source: Address, request: Forward | Backward, now: float) -> Sequence[Effect]:
        blocks = BlockRange(request.first, request.last)
        if (problem := check_request(request, self.config.limits)) is not None:
            return [refuse_request(source, request, problem, is_fault_of_client=True)]
        if request.model != self.config.model or not self.blocks.covers(blocks):
            reason = f"this server holds blocks {self.blocks} of {self.config.model_name}"
            return [refuse_request(source, request, reason)]
        if self._engine.queue.is_full:
            return [refuse_request(source, request, f"{len(self._engine.queue)} jobs wait here already", retry=1.0)]
        if (additions := self._adapters.find(request.adapter, *blocks)) is None and request.adapter:
            return [refuse_request(source, request, "the adapter is not here", wants_adapter=True)]
        return self._engine.push(RequestJob(source, request, self._span, now, additions), now)

    def finished(self, job: object, result: object, now: float) -> Sequence[Effect]:
        if isinstance(job, InstallJob):
            self._is_installing = False
            if isinstance(result, Failed):
                self.config = replace(self.config, model=BROKEN)
            return updates.finished(job, result)
        if isinstance(job, AdapterJob):
            return self._adapters.finished(job, result)
        return self._engine.finished(job, result, now)
