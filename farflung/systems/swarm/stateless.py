"""Forward and backward without a cache, for scoring and for tuning through the chain (PETALS, section 2.2).

Backward recomputes the forward, which is gradient checkpointing at span level, unless what the forward has saved is
still here (`kept.py`).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from farflung.model.lowrank import Additions, detached, factors, like
from farflung.model.span import Span
from farflung.systems.swarm.adapters import encode_factors
from farflung.systems.swarm.kept import KeptPass, counting_saved_bytes
from farflung.systems.swarm.messages import Backward, BackwardDone, Forward, ForwardDone, RequestRefused
from farflung.wire.tensor import WireTensor, decode_tensor, encode_tensor
from farflung.world.address import Address
from farflung.world.doors import Failed
from farflung.world.effects import Effect, Send


class Forwarded(NamedTuple):
    """A finished Forward."""

    answer: ForwardDone
    kept: KeptPass | None
    """What its gradients need, if they will be asked for."""


def forward(span: Span, request: Forward, num_bytes_max: int, additions: Additions | None = None) -> Forwarded:
    """Hidden states [batch, positions, hidden size] after blocks [first, last)."""
    if request.is_kept:
        with counting_saved_bytes(span) as saved:
            kept = _run(span, request, num_bytes_max, additions)
        kept = replace(kept, num_bytes=sum(saved.values()))
        return Forwarded(_forward_done(request, kept.output), kept)
    with torch.no_grad():
        output = _output(span, request, _hidden(request, num_bytes_max), _optional(request.prompts), additions)
    return Forwarded(_forward_done(request, output), None)


def backward(
    span: Span,
    request: Backward,
    num_bytes_max: int,
    additions: Additions | None = None,
    kept: KeptPass | None = None,
) -> BackwardDone:
    """Gradients by the span's input, by its deep prompts if there were any, and by an adapter's factors if they are
    asked for, as the answer to send. `kept`: the pass itself, which need not be computed again."""
    passed = kept or _run(span, request, num_bytes_max, additions)
    wanted = [passed.hidden, *([passed.prompts] if passed.prompts is not None else [])]
    wanted += factors(passed.trained) if passed.trained is not None else []
    gradients = list(torch.autograd.grad(passed.output, wanted, decode_tensor(request.gradient).to(passed.output)))
    of_hidden = gradients.pop(0)
    of_prompts = gradients.pop(0) if passed.prompts is not None else None
    trained = passed.trained
    return BackwardDone(
        request=request.request,
        gradient=encode_tensor(of_hidden, request.codec),
        prompts_gradient=encode_tensor(of_prompts) if of_prompts is not None else None,
        factors_gradient=encode_factors(like(trained, gradients)) if trained is not None else None,
    )


def _run(span: Span, request: Forward | Backward, num_bytes_max: int, additions: Additions | None) -> KeptPass:
    """The pass, with what its gradients need."""
    hidden = _hidden(request, num_bytes_max).requires_grad_()
    prompts = _optional(request.prompts)
    if prompts is not None:
        prompts.requires_grad_()
    trained = None
    if additions is not None and request.wants_factors_gradient:
        additions = trained = detached(additions)
    with torch.enable_grad():
        output = _output(span, request, hidden, prompts, additions)
    return KeptPass(output, hidden, prompts, trained)


def _output(
    span: Span,
    request: Forward | Backward,
    hidden: torch.Tensor,
    prompts: torch.Tensor | None,
    additions: Additions | None,
) -> torch.Tensor:
    return span.forward_train(
        hidden,
        position_ids_BT=_optional(request.position_ids),
        attention_mask_BS=_optional(request.attention_mask),
        first=request.first,
        last=request.last,
        prompts_LPH=prompts,
        additions=additions,
    )


def _hidden(request: Forward | Backward, num_bytes_max: int) -> torch.Tensor:
    return decode_tensor(request.hidden, num_bytes_max=num_bytes_max)


def _forward_done(request: Forward, output: torch.Tensor) -> ForwardDone:
    return ForwardDone(request=request.request, hidden=encode_tensor(output, request.codec))


def answer(source: Address, request: Forward | Backward, result: object) -> Sequence[Effect]:
    """The message that a finished request earns."""
    if isinstance(result, Failed):
        return [Send(source, RequestRefused(request=request.request, reason=f"the computation failed: {result.error}"))]
    assert isinstance(result, ForwardDone | BackwardDone)
    return [Send(source, result)]


def _optional(tensor: WireTensor | None) -> torch.Tensor | None:
    return decode_tensor(tensor) if tensor is not None else None
