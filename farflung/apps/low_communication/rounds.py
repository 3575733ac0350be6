"""One site's rounds: what its ranks do together, from meeting the other sites to leaving them.

All methods are called by all ranks of a site, in the same order; what one rank meets with is told to all, so that they
go on, or stop, together.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from farflung.apps.low_communication.loop import LoopLearner
from farflung.apps.low_communication.meeting import MEMBER_ROLES, NobodyThere, Offer, agree, announce, offers
from farflung.apps.low_communication.memory import ReplicaMemory
from farflung.apps.low_communication.policy import Policy
from farflung.apps.low_communication.ranks import Ranks
from farflung.apps.low_communication.session import LaneSession, RoundsOver
from farflung.apps.low_communication.states import OptimizerStates, digest_of, is_sharded
from farflung.apps.low_communication.whereabouts import Whereabouts
from farflung.apps.wiring import Connection
from farflung.learn.redistribute import Site
from farflung.learn.staging import PARAMETERS, Staging, States
from farflung.wire.certificate import TicketRole
from farflung.world.address import PeerId
from farflung.world.errors import FarflungError

REUNION_SECONDS_MAX = 30.0
"""How long sites whose lead is gone take to agree on another."""
TICKET_SECONDS = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class _Standing:
    """How far one rank is."""

    num_left: int | None
    """Steps until the engine wants this rank back; None if it has no lane."""
    num_steps: int
    over: str = ""
    """Why there will be no round."""
    error: str = ""
    """What has failed."""


class Rounds:
    """See the module's docstring."""

    def __init__(self, states: OptimizerStates, policy: Policy, where: Whereabouts, site: Site) -> None:
        self._states, self._policy, self._where, self._site = states, policy, where, site
        self._ranks = Ranks(site)
        self._config = policy.engine_config(states.moments)
        self._connections: list[Connection] = []
        self._sessions: list[LaneSession] = []
        self._memories: dict[int, ReplicaMemory] = {}
        self._staging: Staging | None = None
        self._offer: Offer | None = None
        self._ticket: str | None = None
        self._num_since = 0
        """Steps since the engine last had the loop."""
        self._num_left = 0
        self._is_open = False
        self._is_together = False
        """Whether there are others to average with."""
        self.num_steps = states.num_steps
        self._num_rounds_before = 0

    # The program's side

    def open(self) -> None:
        """Join the swarm and the run, and take over its state."""
        try:
            self._offer = msgspec.json.decode(self._ranks.first(self._join), type=Offer)
            self._meet(self._where.wait_seconds_max)
        except BaseException:
            self.close()
            raise
        self._is_open = True

    def count_step(self) -> None:
        """The loop has made one step."""
        self.num_steps += 1
        self._num_since += 1

    def turn_if_due(self) -> None:
        """Average, if it is time."""
        if not self._is_open or self._num_since < self._num_left:
            return
        num_steps, self._num_since = self._num_since, 0
        if not self._is_together:
            self._reunite()
            return
        self._collect()
        for session in self._sessions:
            session.advance(num_steps)
        self._go_on()

    def close(self) -> None:
        """Leave the run and the swarm."""
        self._is_open = False
        self._end_sessions()
        for connection in reversed(self._connections):
            connection.close()
        self._connections.clear()

    @property
    def num_rounds(self) -> int:
        """Averages that this rank's lanes have taken part in; none on a rank for which another speaks."""
        return self._num_rounds_before + max((session.num_rounds for session in self._sessions), default=0)

    @property
    def ticket(self) -> str:
        """A worker's ticket of the swarm that was founded."""
        if self._ticket is None:
            raise ValueError("only who founded the swarm with new_swarm has a ticket to give; others pass theirs on")
        return self._ticket

    def state_dict(self) -> dict[str, Any]:
        """What the replicas of this rank's lanes remember."""
        memories = dict(self._memories)
        for session in self._sessions:
            memories |= session.memory()
        return {
            "num_steps": self.num_steps,
            "lanes": {lane: memory.state_dict() for lane, memory in memories.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next sessions begin with what replicas remembered then."""
        self.num_steps = state["num_steps"]
        lanes: Mapping[int, dict[str, Any]] = state["lanes"]
        self._memories = {lane: ReplicaMemory.from_state_dict(memory) for lane, memory in lanes.items()}

    # Meeting

    def _join(self) -> bytes:
        """The first rank joins the swarm and says what the site offers."""
        connection = self._connect(self._where.ticket)
        node = connection.node
        if node.node.role not in MEMBER_ROLES:
            raise ValueError(
                f"this ticket is a {node.node.role.value}'s: training takes a worker's, which an admin makes with "
                "`farflung invite --role worker`"
            )
        if self._where.new_swarm is not None:
            now = time.time()
            self._ticket = node.node.ticket.invite(TicketRole.WORKER, now + TICKET_SECONDS, now).text()
            self._where.on_ticket(self._ticket)
        parameters = self._states.parameters
        num_lanes = self._where.num_lanes or (self._site.num_ranks if is_sharded(parameters) else 1)
        offer = Offer(
            run=self._where.run,
            site=node.peer,
            lane=0,
            model=digest_of(self._states),
            num_values=sum(tensor.numel() for tensor in parameters.values()),
            num_tensors=len(parameters),
            policy=self._policy.describe(),
            num_lanes=num_lanes,
            started_at=time.time(),
        )
        return msgspec.json.encode(offer)

    def _connect(self, ticket: str | None) -> Connection:
        is_founding = self._where.new_swarm is not None and self._site.rank == 0 and not self._connections
        number = self._site.rank + len(self._connections)
        place = self._where.place(number)
        connection = Connection(ticket, place, new_swarm=self._where.new_swarm if is_founding else None)
        self._connections.append(connection)
        return connection

    def _meet(self, seconds_max: float) -> None:
        """Agree with the other sites, and begin a session for every lane of this rank."""
        assert self._offer is not None
        offer = self._offer

        def agree_on_first() -> tuple[PeerId, int, str | None]:
            connection = self._connections[0]
            found = connection.bridge.run(agree(connection.node, offer, self._policy.sites_min, seconds_max))
            return found.lead, found.num_lanes, self._ticket or self._where.ticket

        lead, num_lanes, ticket = self._ranks.first(agree_on_first)
        agreed = msgspec.structs.replace(offer, lead=lead, num_lanes=num_lanes)
        if self._staging is None or num_lanes != self._offer.num_lanes:
            self._staging = Staging(self._site, self._shared, num_lanes)
            self._offer = msgspec.structs.replace(self._offer, num_lanes=num_lanes)
        self._collect()
        self._ranks.together(lambda: self._begin_sessions(agreed, ticket))
        self._is_together = True
        self._go_on()

    def _begin_sessions(self, agreed: Offer, ticket: str | None) -> None:
        assert self._staging is not None
        if self._memories and self._memories.keys() != {lane.number for lane in self._staging.lanes}:
            raise ValueError("this checkpoint of LowCommunication is of another rank, or of a site with other ranks")
        while len(self._connections) < len(self._staging.lanes):
            self._connect(ticket)
        for connection, lane in zip(self._connections, self._staging.lanes, strict=False):
            offer = msgspec.structs.replace(agreed, lane=lane.number)
            learner = LoopLearner(lane, self.num_steps)
            memory = self._memories.get(lane.number)
            region = self._where.region or agreed.site
            session = LaneSession(connection, offer, learner, self._config, region, self._policy.sites_min)
            self._sessions.append(session)
            session.start(memory)

    def _reunite(self) -> None:
        """Average again if enough sites are there; else go on alone until the next time."""
        self._num_left = self._policy.parameters_every

        def num_present() -> int:
            async def look() -> int:
                assert self._offer is not None
                announce(self._connections[0].node, self._offer)
                return len(offers(self._connections[0].node, self._offer.run, 0))

            return self._connections[0].bridge.run(look())

        if self._ranks.first(num_present) < self._policy.sites_min:
            return
        try:
            self._meet(REUNION_SECONDS_MAX)
        except NobodyThere as error:
            self._note(f"goes on alone: {error}")
            self._end_sessions()

    # Rounds

    def _collect(self) -> None:
        assert self._staging is not None
        self._staging.collect(self._shared)

    def _go_on(self) -> None:
        """Wait for the engine, and take over what it has made of the lanes."""
        standings: list[_Standing] = self._site.gather(self._standing())  # type: ignore[assignment]
        error = next((standing.error for standing in standings if standing.error), None)
        if error is not None:
            raise FarflungError(error)
        over = next((standing.over for standing in standings if standing.over), None)
        if over is not None:
            self._end_sessions()
        assert self._staging is not None
        self._staging.spread(self._shared)
        if over is not None:
            self._note(f"this round does not come about: {over}")
            self._reunite()
            return
        if standings[0].num_steps != self.num_steps:
            self.num_steps = standings[0].num_steps
            self._states.set_num_steps(self.num_steps)
        self._num_left = min(standing.num_left for standing in standings if standing.num_left is not None)

    @property
    def _shared(self) -> States:
        return {PARAMETERS: self._states.parameters, **self._states.moments}

    def _standing(self) -> _Standing:
        try:
            for session in self._sessions:
                session.wait()
        except RoundsOver as reason:
            return _Standing(None, self.num_steps, over=str(reason))
        except FarflungError as error:
            return _Standing(None, self.num_steps, error=str(error))
        if not self._sessions:
            return _Standing(None, self.num_steps)
        learners = [session.learner for session in self._sessions]
        return _Standing(min(learner.num_left for learner in learners), learners[0].num_steps)

    def _end_sessions(self) -> None:
        for session in self._sessions:
            session.close()
            self._memories |= session.memory()
        self._num_rounds_before = self.num_rounds
        self._sessions.clear()
        self._is_together = False

    def _note(self, sentence: str) -> None:
        if self._connections:
            self._connections[0].node.world.note("low-communication", sentence)
