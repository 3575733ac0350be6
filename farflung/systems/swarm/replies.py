"""The messages that a block server sends about a step (pure)."""

from farflung.systems.swarm.messages import (
    Backward,
    Behind,
    Forward,
    Output,
    RequestRefused,
    SessionRefused,
    StandingBy,
    Step,
    Working,
)
from farflung.world.address import Address
from farflung.world.effects import Send


def behind(step: Step, applied: int) -> Send:
    """Tell the client that this server cannot start from `step.base`."""
    first, last = step.route[0].first, step.route[0].last
    message = Behind(session=step.session, first=first, last=last, upto=step.upto, applied=applied)
    return Send(Address(*step.client), message)


def working(step: Step) -> Send:
    """Tell the client that the step waits or runs."""
    first, last = step.route[0].first, step.route[0].last
    return Send(Address(*step.client), Working(session=step.session, first=first, last=last, upto=step.upto))


def standing_by(step: Step, upto: int) -> Send:
    """Tell the client how far its standby is."""
    first, last = step.route[0].first, step.route[0].last
    return Send(Address(*step.client), StandingBy(session=step.session, first=first, last=last, upto=upto))


def refuse(
    step: Step, reason: str, *, retry: float = 0.0, is_fault_of_client: bool = False, wants_adapter: bool = False
) -> Send:
    """Tell the client no, and why."""
    first, last = (step.route[0].first, step.route[0].last) if step.route else (0, 0)
    refusal = SessionRefused(
        session=step.session,
        first=first,
        last=last,
        upto=step.upto,
        reason=reason,
        retry_after_seconds=retry,
        is_fault_of_client=is_fault_of_client,
        wants_adapter=wants_adapter,
    )
    return Send(Address(*step.client), refusal)


def refuse_request(
    source: Address,
    request: Forward | Backward,
    reason: str,
    *,
    retry: float = 0.0,
    is_fault_of_client: bool = False,
    wants_adapter: bool = False,
) -> Send:
    """The same for a request without a session."""
    refusal = RequestRefused(
        request=request.request,
        reason=reason,
        retry_after_seconds=retry,
        is_fault_of_client=is_fault_of_client,
        wants_adapter=wants_adapter,
    )
    return Send(source, refusal)


def onward(step: Step, output: Output) -> Step:
    """The same step for the next hop, with this hop's output as its input."""
    return Step(
        session=step.session,
        model=step.model,
        route=step.route[1:],
        client=step.client,
        base=step.base,
        upto=step.upto,
        edits=step.edits,
        hidden=output.hidden,
        position_ids=step.position_ids,
        attention_mask=step.attention_mask,
        prompts=step.prompts,
        adapter=step.adapter,
        num_tokens_max=step.num_tokens_max,
        codec=step.codec,
    )
