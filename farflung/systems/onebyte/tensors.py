"""Which tensors of a model are tuned: chosen by group or by pattern, tied ones once."""

import difflib
import fnmatch
import re
from collections.abc import Sequence

import torch
from torch import nn

from farflung.learn.parameters import Tensors
from farflung.systems.onebyte.header import TensorShape

GROUPS: dict[str, str] = {
    "attention": r"(^|\.)(\w*attn\w*|attention|self_attention|q_proj|k_proj|v_proj|o_proj)\.(?!.*norm)",
    "mlp": r"(^|\.)(mlp|feed_forward|ffn|fc1|fc2)\.",
    "embedding": r"(^|\.)(\w*embed\w*|wte|wpe|lm_head|embed_out)\.",
    "norm": r"(^|\.)(\w*norm\w*|ln_\w+)\.",
}
"""Parts of a model by the names that families give them; "all" is every parameter, "linear" every matrix of a layer."""
NAMES_SHOWN_MAX = 5


def choose_tensors(model: nn.Module, patterns: Sequence[str]) -> tuple[TensorShape, ...]:
    """The parameters that any of the patterns names, in the model's order.

    A pattern is a group (`all`, `linear`, `attention`, `mlp`, `embedding`, `norm`) or a file name pattern over
    parameter names, such as `*.q_proj.weight`; one that begins with `-` takes away.

    Raises:
        ValueError: a pattern matches nothing.
    """
    parameters = dict(model.named_parameters())
    if not patterns or patterns[0].startswith("-"):
        raise ValueError("say which tensors to tune: all, linear, attention, mlp, embedding, norm, or a name pattern")
    chosen: dict[str, bool] = {}
    for pattern in patterns:
        found = [name for name in parameters if _matches(name, parameters[name], pattern.removeprefix("-"))]
        if not found:
            raise ValueError(f"{pattern!r} matches no tensor of this model: {_way_out(pattern, list(parameters))}")
        chosen.update(dict.fromkeys(found, not pattern.startswith("-")))
    names = [name for name in parameters if chosen.get(name)]
    if not names:
        raise ValueError(f"the patterns {', '.join(patterns)} leave no tensor to tune: take away less")
    return tuple(TensorShape(name, tuple(parameters[name].shape)) for name in names)


def chosen_parameters(model: nn.Module, tensors: Sequence[TensorShape]) -> Tensors:
    """The model's own parameters by name.

    Raises:
        ValueError: the model lacks one, or has it in another shape.
    """
    parameters = dict(model.named_parameters())
    for tensor in tensors:
        found = parameters.get(tensor.name)
        if found is None or tuple(found.shape) != tensor.shape:
            raise ValueError(
                f"this model has no {tensor.name} of shape {list(tensor.shape)}: take the model that the run is about"
            )
    return {tensor.name: parameters[tensor.name] for tensor in tensors}


def _matches(name: str, parameter: torch.Tensor, pattern: str) -> bool:
    if pattern == "all":
        return True
    if pattern == "linear":
        return parameter.dim() > 1 and not re.search(GROUPS["embedding"], name)
    if pattern in GROUPS:
        return re.search(GROUPS[pattern], name) is not None
    return fnmatch.fnmatchcase(name, pattern)


def _way_out(pattern: str, names: list[str]) -> str:
    near = difflib.get_close_matches(pattern, ["all", "linear", *GROUPS, *names], n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    shown = ", ".join(names[:NAMES_SHOWN_MAX])
    return f"its tensors are {shown}{' and so on' if len(names) > NAMES_SHOWN_MAX else ''}"
