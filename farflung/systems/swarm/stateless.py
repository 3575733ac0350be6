"""Forward and backward without a cache, for scoring and for tuning through the chain (PETALS, section 2.2).

Servers keep nothing between the two: backward recomputes the forward, which is gradient checkpointing at span level.
"""

from collections.abc import Sequence

import torch

from farflung.model.lowrank import Additions, detached, factors, like
from farflung.model.span import Span
from farflung.systems.swarm.adapters import encode_factors
from farflung.systems.swarm.messages import Backward, BackwardDone, Forward, ForwardDone, RequestRefused
from farflung.wire.tensor import WireTensor, decode_tensor, encode_tensor
from farflung.world.address import Address
from farflung.world.doors import Failed
from farflung.world.effects import Effect, Send


def forward(span: Span, request: Forward, num_bytes_max: int, additions: Additions | None = None) -> ForwardDone:
    """Hidden states [batch, positions, hidden size] after blocks [first, last), as the answer to send."""
    with torch.no_grad():
        output = span.forward_train(
            decode_tensor(request.hidden, num_bytes_max=num_bytes_max),
            position_ids_BT=_optional(request.position_ids),
            attention_mask_BS=_optional(request.attention_mask),
            first=request.first,
            last=request.last,
            prompts_LPH=_optional(request.prompts),
            additions=additions,
        )
    return ForwardDone(request=request.request, hidden=encode_tensor(output, request.codec))


def backward(span: Span, request: Backward, num_bytes_max: int, additions: Additions | None = None) -> BackwardDone:
    """Gradients by the span's input, by its deep prompts if there were any, and by an adapter's factors if they are
    asked for, as the answer to send."""
    hidden = decode_tensor(request.hidden, num_bytes_max=num_bytes_max).requires_grad_()
    wanted = [hidden]
    prompts = _optional(request.prompts)
    if prompts is not None:
        wanted.append(prompts.requires_grad_())
    trained = additions if request.wants_factors_gradient else None
    if trained is not None:
        additions = trained = detached(trained)
        wanted += factors(trained)
    with torch.enable_grad():
        output = span.forward_train(
            hidden,
            position_ids_BT=_optional(request.position_ids),
            attention_mask_BS=_optional(request.attention_mask),
            first=request.first,
            last=request.last,
            prompts_LPH=prompts,
            additions=additions,
        )
    gradients = list(torch.autograd.grad(output, wanted, decode_tensor(request.gradient).to(output)))
    of_hidden = gradients.pop(0)
    of_prompts = gradients.pop(0) if prompts is not None else None
    return BackwardDone(
        request=request.request,
        gradient=encode_tensor(of_hidden, request.codec),
        prompts_gradient=encode_tensor(of_prompts) if of_prompts is not None else None,
        factors_gradient=encode_factors(like(trained, gradients)) if trained is not None else None,
    )


def answer(source: Address, request: Forward | Backward, result: object) -> Sequence[Effect]:
    """The message that a finished request earns."""
    if isinstance(result, Failed):
        return [Send(source, RequestRefused(request=request.request, reason=f"the computation failed: {result.error}"))]
    assert isinstance(result, ForwardDone | BackwardDone)
    return [Send(source, result)]


def _optional(tensor: WireTensor | None) -> torch.Tensor | None:
    return decode_tensor(tensor) if tensor is not None else None
