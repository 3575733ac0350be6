"""A seat's questions to the lead of its run: asked until they are answered, however slow or broken the way is."""

from typing import TypeVar

from farflung.apps.runs.messages import StopSeat
from farflung.wire.message import Message, Refusal
from farflung.world.address import Address
from farflung.world.doors import Clock
from farflung.world.errors import FarflungError, Refused, Unreachable
from farflung.world.mailbox import Mailbox, PeerLost

ANSWER_SECONDS = 10.0
"""A question that has no answer by then is asked again."""
CALL_AGAIN_SECONDS = 1.0
"""How soon after its link has broken the lead is spoken to again."""

Answer = TypeVar("Answer", bound=Message)


class RunStopped(FarflungError):
    """The lead has asked this seat to leave."""


async def ask_lead(
    clock: Clock, mailbox: Mailbox, lead: Address, question: Message, kind: type[Answer], seconds_max: float
) -> Answer:
    """The lead's answer, also to an earlier asking; answers of other kinds came late, and are dropped.

    Raises:
        Unreachable: there is none after `seconds_max`.
        Refused, RunStopped: the lead says so.
    """
    deadline, reason = clock.now() + seconds_max, "no answer before the deadline"
    while clock.now() < deadline:
        mailbox.send(lead, question)
        again_at = min(deadline, clock.now() + ANSWER_SECONDS)
        while (received := await mailbox.receive(again_at)) is not None:
            match received:
                case (source, _) if source.peer != lead.peer:
                    pass
                case (_, Refusal(reason=why)):
                    raise Refused(lead.peer, why)
                case (_, StopSeat(reason=why)):
                    raise RunStopped(why)
                case (_, PeerLost(reason=reason)):
                    again_at = min(again_at, clock.now() + CALL_AGAIN_SECONDS)
                case (_, answer) if isinstance(answer, kind):
                    return answer
                case _:
                    pass
    raise Unreachable(lead.peer, reason)
