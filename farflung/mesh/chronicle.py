"""The role that tells members of the swarm what this node has decided lately, and why."""

from collections.abc import Callable, Sequence

from farflung.mesh.config import ChronicleConfig
from farflung.mesh.limits import TokenBucket
from farflung.mesh.messages import AskDecisions, Decision, Decisions
from farflung.wire.message import Refusal
from farflung.world.address import Address, PeerId
from farflung.world.effects import Effect, Send
from farflung.world.role import Role


class Chronicle(Role):
    """Answers `AskDecisions`. It keeps nothing: `after(number)` gives what its node keeps after that number."""

    def __init__(
        self, life: float, after: Callable[[int], Sequence[Decision]], config: ChronicleConfig | None = None
    ) -> None:
        """`life`: wall-clock second at which this process began."""
        self._life = life
        self._after = after
        self._config = config or ChronicleConfig()
        self._buckets: dict[PeerId, TokenBucket] = {}

    def receive(self, source: Address, message: object, now: float) -> Sequence[Effect]:
        match message:
            case AskDecisions(life=life, after=after):
                bucket = self._bucket(source.peer, now)
                if not bucket.take(now):
                    reason = "questions come faster than they are answered"
                    return [Send(source, Refusal(reason=reason, retry_after_seconds=bucket.wait_seconds(now)))]
                known = self._after(after if life == self._life else 0)
                newest = list(known[-self._config.decisions_per_answer_max :])
                return [Send(source, Decisions(life=self._life, decisions=newest))]
            case _:
                return ()

    def lost(self, peer: PeerId, reason: str, now: float) -> Sequence[Effect]:
        self._buckets.pop(peer, None)
        return ()

    def _bucket(self, peer: PeerId, now: float) -> TokenBucket:
        if peer not in self._buckets:
            rate, burst = self._config.answers_per_second, self._config.answers_at_once
            self._buckets[peer] = TokenBucket(per_second=rate, burst=burst, now=now)
        return self._buckets[peer]
