"""What a block server demands of a request before it spends memory or time on it (pure)."""

from collections.abc import Sequence
from dataclasses import dataclass

from farflung.systems.swarm.messages import Backward, Edit, Forward, Reorder, Step, Truncate
from farflung.wire.message import ACTOR_NAME_LENGTH_MAX
from farflung.wire.tensor import CODECS, WireTensor

FLOATING_DTYPES = ("float32", "float16", "bfloat16")
NUM_EDITS_MAX = 64
NUM_HOPS_MAX = 512
NAME_LENGTH_MAX = 100
"""Of sessions, requests and peers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on one request."""

    hidden_size: int
    """Width of the model's hidden states."""
    context_length_max: int
    """Positions the model can attend to."""
    batch_size_max: int = 256
    """Rows of one request."""
    num_prompt_positions_max: int = 1024
    """Length of deep prompts."""
    adapter_rank_max: int = 256
    """Of an adapter's factors."""


def can_answer(step: Step) -> bool:
    """Whether an answer to this step, a refusal too, would be a message that its client's node can take."""
    peer, actor = step.client
    return max(len(step.session), len(peer)) <= NAME_LENGTH_MAX and 1 <= len(actor) <= ACTOR_NAME_LENGTH_MAX


def check_step(step: Step, limits: Limits) -> str | None:
    """Why this step cannot be right, in a sentence for its sender; None if its shapes are in order."""
    if not step.route or not 0 <= step.base < step.upto:
        return "a step needs a route and must lead from an older to a newer state"
    if len(step.route) > NUM_HOPS_MAX or len(step.edits) > NUM_EDITS_MAX:
        return f"a step takes at most {NUM_HOPS_MAX} hops and {NUM_EDITS_MAX} edits"
    if len(step.adapter) > NAME_LENGTH_MAX:
        return "the adapter's name is too long"
    if any(len(hop.peer) > NAME_LENGTH_MAX or not 0 <= hop.first < hop.last for hop in step.route):
        return "a hop needs a peer and a range of blocks that is not empty"
    return (
        check_hidden(step.hidden, limits)
        or _check_edits(step.edits, limits)
        or _check_companions(step, limits)
        or _check_reserved(step, limits)
    )


def follow(step: Step, length: int, batch_size: int, limits: Limits) -> tuple[int, int] | str:
    """(length, batch size) of a cache of `length` and `batch_size` after `step`, or why the step does not fit it."""
    for edit in step.edits:
        if isinstance(edit, Truncate):
            if edit.length > length:
                return f"a cache of {length} positions cannot be cut to {edit.length}"
            length = edit.length
        else:
            if max(edit.rows) >= batch_size:
                return f"row {max(edit.rows)} does not exist in a batch of {batch_size}"
            batch_size = len(edit.rows)
    num_rows, num_new, _ = step.hidden.shape
    if length and num_rows != batch_size:
        return f"{num_rows} rows do not continue a session of {batch_size}"
    if length + num_new > limits.context_length_max:
        return f"{length + num_new} positions are over the model's context of {limits.context_length_max}"
    if num_rows * (length + num_new) > step.num_tokens_max:
        return f"{num_rows} rows of {length + num_new} positions are over the {step.num_tokens_max} tokens asked for"
    return length + num_new, num_rows


def check_request(request: Forward | Backward, limits: Limits) -> str | None:
    """As `check_step`, for stateless requests."""
    if len(request.request) > NAME_LENGTH_MAX:
        return "the request's name is too long"
    if len(request.adapter) > NAME_LENGTH_MAX:
        return "the adapter's name is too long"
    if not 0 <= request.first < request.last:
        return "a request needs a range of blocks that is not empty"
    problem = check_hidden(request.hidden, limits) or _check_companions(request, limits)
    if problem is not None or isinstance(request, Forward):
        return problem
    gradient = request.gradient
    if gradient.shape != request.hidden.shape or gradient.dtype not in FLOATING_DTYPES:
        return f"the gradient must be floating-point of shape {request.hidden.shape}, not {_described(gradient)}"
    return None


def check_hidden(hidden: WireTensor, limits: Limits) -> str | None:
    """Whether hidden states have the shape and type this model works with."""
    if len(hidden.shape) != 3 or hidden.dtype not in FLOATING_DTYPES:
        return f"hidden states must be three-dimensional and floating-point, not {_described(hidden)}"
    batch_size, num_positions, hidden_size = hidden.shape
    if hidden_size != limits.hidden_size:
        return f"hidden states are {hidden_size} wide but this model's are {limits.hidden_size}"
    if not 1 <= batch_size <= limits.batch_size_max:
        return f"a batch of {batch_size} rows; this server takes 1 to {limits.batch_size_max}"
    if not 1 <= num_positions <= limits.context_length_max:
        return f"{num_positions} positions; the model's context is {limits.context_length_max}"
    return None


def _check_edits(edits: Sequence[Edit], limits: Limits) -> str | None:
    for edit in edits:
        if isinstance(edit, Truncate) and edit.length < 0:
            return "a cache cannot be cut to a negative length"
        if isinstance(edit, Reorder) and not (
            1 <= len(edit.rows) <= limits.batch_size_max and all(0 <= row < limits.batch_size_max for row in edit.rows)
        ):
            return f"a reorder must name 1 to {limits.batch_size_max} rows that exist"
    return None


def _check_companions(request: Step | Forward | Backward, limits: Limits) -> str | None:
    """Position ids, masks and prompts must fit the hidden states they come with."""
    for name, tensor in (("position ids", request.position_ids), ("attention mask", request.attention_mask)):
        if tensor is not None and (tensor.shape != request.hidden.shape[:2] or tensor.dtype != "int64"):
            return f"the {name} must be int64 of shape {request.hidden.shape[:2]}, not {_described(tensor)}"
    if request.codec not in CODECS:
        return f"the codec must be one of {', '.join(CODECS)}, not {request.codec[:20]!r}"
    prompts = request.prompts
    if prompts is not None and not (
        len(prompts.shape) == 3
        and prompts.dtype in FLOATING_DTYPES
        and _are_for_its_blocks(prompts, request)
        and 0 <= prompts.shape[1] <= limits.num_prompt_positions_max
        and prompts.shape[2] == limits.hidden_size
    ):
        return f"deep prompts of {_described(prompts)} do not fit these blocks"
    return None


def _are_for_its_blocks(prompts: WireTensor, request: Step | Forward | Backward) -> bool:
    """Those of a step are of all the model's blocks, those of a stateless request of its own blocks alone."""
    if isinstance(request, Step):
        return prompts.shape[0] >= request.route[-1].last
    return prompts.shape[0] == request.last - request.first


def _described(tensor: WireTensor) -> str:
    return f"{tensor.dtype[:20]} {tensor.shape[:8]}"


def _check_reserved(step: Step, limits: Limits) -> str | None:
    if step.num_tokens_max < 1:
        return "a session needs cache for at least one token"
    if step.num_tokens_max > limits.context_length_max * limits.batch_size_max:
        return f"{step.num_tokens_max} cache tokens are more than this server gives any session"
    return None
