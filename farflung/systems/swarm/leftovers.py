"""What a block server frees because nobody will come back for it."""

from dataclasses import dataclass, field

from farflung.systems.swarm.config import ServerConfig
from farflung.systems.swarm.messages import StandingBy
from farflung.systems.swarm.sessions import SessionTable
from farflung.world.address import PeerId
from farflung.world.effects import Effect, Note, Send


@dataclass(slots=True)
class Leftovers:
    """Clients that cannot be reached, and the sessions of those who can but may have forgotten them.

    That a session is over is told once; when that was lost, as with a server that was cut off, the server has to ask.
    """

    _orphans: dict[PeerId, float] = field(default_factory=dict[PeerId, float])
    """Since when each peer cannot be reached."""

    def heard_of(self, peer: PeerId) -> None:
        self._orphans.pop(peer, None)

    def lost(self, peer: PeerId, now: float) -> None:
        """The way to a peer that has sessions broke; told again and again, the first time counts."""
        self._orphans.setdefault(peer, now)

    def sweep(self, sessions: SessionTable, config: ServerConfig, now: float) -> list[Effect]:
        """Close what is over, and ask the clients of what is not used whether they still want it."""
        effects: list[Effect] = []
        for peer, since in list(self._orphans.items()):
            if now - since >= config.orphan_seconds_max:
                del self._orphans[peer]
                freed = sessions.close_where(client_peer=peer)
                effects.append(Note(f"freed {freed} session parts of {peer}, which is gone"))
        for session in sessions:
            name, first, last = session.key
            if now - session.used_at > config.idle_seconds_max:
                sessions.close(session.key)
                effects.append(Note(f"freed a session of {session.client.peer} after {config.idle_seconds_max} s"))
            elif now - max(session.used_at, session.asked_at) >= config.ask_seconds:
                session.asked_at = now
                question = StandingBy(session=name, first=first, last=last, upto=session.applied)
                effects.append(Send(session.client, question))
        return effects
