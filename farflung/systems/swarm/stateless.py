"""Forward and backward without a cache, for scoring and for tuning through the chain (PETALS, section 2.2).

Servers keep nothing between the two: backward recomputes the forward, which is gradient checkpointing at span level.
"""

from collections.abc import Sequence

import torch

from farflung.model.span import Span
from farflung.systems.swarm.messages import Backward, BackwardDone, Forward, ForwardDone, RequestRefused
from farflung.wire.tensor import WireTensor, decode_tensor, encode_tensor
from farflung.world.address import Address
from farflung.world.doors import Failed
from farflung.world.effects import Effect, Send


def forward(span: Span, request: Forward, num_bytes_max: int) -> ForwardDone:
    """Hidden states [batch, positions, hidden size] after blocks [first, last), as the answer to send."""
    with torch.no_grad():
        output = span.forward_train(
            decode_tensor(request.hidden, num_bytes_max=num_bytes_max),
            position_ids_BT=_optional(request.position_ids),
            attention_mask_BS=_optional(request.attention_mask),
            first=request.first,
            last=request.last,
            prompts_LPH=_optional(request.prompts),
        )
    return ForwardDone(request=request.request, hidden=encode_tensor(output, request.codec))


def backward(span: Span, request: Backward, num_bytes_max: int) -> BackwardDone:
    """Gradients by the span's input, and by its deep prompts if there were any, as the answer to send."""
    hidden = decode_tensor(request.hidden, num_bytes_max=num_bytes_max).requires_grad_()
    prompts = _optional(request.prompts)
    if prompts is not None:
        prompts.requires_grad_()
    with torch.enable_grad():
        output = span.forward_train(
            hidden,
            position_ids_BT=_optional(request.position_ids),
            attention_mask_BS=_optional(request.attention_mask),
            first=request.first,
            last=request.last,
            prompts_LPH=prompts,
        )
    wanted = [hidden] if prompts is None else [hidden, prompts]
    gradients = torch.autograd.grad(output, wanted, decode_tensor(request.gradient).to(output))
    return BackwardDone(
        request=request.request,
        gradient=encode_tensor(gradients[0], request.codec),
        prompts_gradient=encode_tensor(gradients[1]) if prompts is not None else None,
    )


def answer(source: Address, request: Forward | Backward, result: object) -> Sequence[Effect]:
    """The message that a finished request earns."""
    if isinstance(result, Failed):
        return [Send(source, RequestRefused(request=request.request, reason=f"the computation failed: {result.error}"))]
    assert isinstance(result, ForwardDone | BackwardDone)
    return [Send(source, result)]


def _optional(tensor: WireTensor | None) -> torch.Tensor | None:
    return decode_tensor(tensor) if tensor is not None else None
