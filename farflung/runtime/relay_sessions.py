"""What goes through relays at this moment: the open sessions, and the questions that wait for an answer."""

import asyncio

from farflung.runtime.lane import StreamBroken
from farflung.runtime.link import Link
from farflung.runtime.relayed import RelayedSession, Through
from farflung.wire.control import RelayFailed
from farflung.wire.sealed import BadSeal, RelayBody, SealedDecline, SealedFrame, SealedSession
from farflung.world.address import PeerId


class RelaySessions:
    """Sessions and questions of one node, by peer and the session's name (empty for questions outside one)."""

    def __init__(self) -> None:
        self._open: dict[tuple[PeerId, bytes], RelayedSession] = {}
        self._asked: dict[tuple[PeerId, bytes], tuple[Link, asyncio.Future[RelayBody]]] = {}

    def open(self, through: Through, sealed: SealedSession) -> RelayedSession:
        """Begin to take frames of an agreed session."""
        key = through.peer, sealed.session
        session = RelayedSession(through, sealed, lambda: self._open.pop(key, None))
        self._open[key] = session
        return session

    async def ask(self, through: Through, session: bytes, body: RelayBody, seconds: float) -> RelayBody:
        """Send a body and return its answer.

        Raises:
            StreamBroken: the relay cannot reach the peer, or no answer came in time.
        """
        key = through.peer, session
        answer: asyncio.Future[RelayBody] = asyncio.get_running_loop().create_future()
        self._asked[key] = through.link, answer
        try:
            through.send(body)
            return await asyncio.wait_for(answer, seconds)
        except TimeoutError:
            raise StreamBroken("it did not answer through the relay") from None
        finally:
            del self._asked[key]

    def answered(self, through: Through, session: bytes, body: RelayBody) -> None:
        """A body came that answers `ask`; those that nobody waits for are passed over."""
        link, answer = self._asked.get((through.peer, session), (None, None))
        if link is through.link and answer is not None and not answer.done():
            answer.set_result(body)

    def take(self, through: Through, frame: SealedFrame) -> None:
        """A sealed frame came.

        Raises:
            BadSeal: it was tampered with; its session is over.
        """
        session = self._open.get((through.peer, frame.session))
        if session is None:
            through.send(SealedDecline(session=frame.session, reason="there is no such session"))
            return
        try:
            session.take(frame)
        except BadSeal as error:
            session.end(str(error))
            raise

    def declined(self, through: Through, body: SealedDecline) -> None:
        """The other side ended a session, or never agreed to it."""
        self.answered(through, body.session, body)
        session = self._open.get((through.peer, body.session))
        if session is not None:
            session.end(body.reason[:200])

    def failed(self, link: Link, frame: RelayFailed) -> None:
        """A relay could not reach the other side."""
        self._end(link, frame.destination, frame.reason[:200])

    def lost(self, link: Link) -> None:
        """The link to a relay is gone."""
        self._end(link, None, "the relay was lost")

    def _end(self, link: Link, peer: PeerId | None, reason: str) -> None:
        for (other, _), session in list(self._open.items()):
            if session.through.link is link and peer in (None, other):
                session.end(reason)
        for (other, _), (through, answer) in list(self._asked.items()):
            if through is link and peer in (None, other) and not answer.done():
                answer.set_exception(StreamBroken(reason))
