"""What the whole transformers model does at the places where a span begins and ends."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass
class Record:
    """A greedy run of the whole model: its tokens, and what entered and left its layers at every forward."""

    tokens: Tensor
    entered: list[Tensor]
    left: list[Tensor]


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a whole model."""
    num_layers = model.config.num_hidden_layers
    return next(each for each in model.modules() if isinstance(each, nn.ModuleList) and len(each) == num_layers)


def greedy_record(model: PreTrainedModel, prompt: Tensor, num_new: int) -> Record:
    """Let the whole model go on greedily from a prompt [1, T], noting hidden states around its layers."""
    entered: list[Tensor] = []
    left: list[Tensor] = []

    def note_entry(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entered.append(args[0] if args else kwargs["hidden_states"])

    def note_exit(_module: nn.Module, _args: Any, output: Any) -> None:
        left.append(output[0] if isinstance(output, tuple) else output)

    layers = layers_of(model)
    hooks = [
        layers[0].register_forward_pre_hook(note_entry, with_kwargs=True),
        layers[-1].register_forward_hook(note_exit),
    ]
    try:
        tokens = generate(model, prompt, max_new_tokens=num_new)
    finally:
        for hook in hooks:
            hook.remove()
    return Record(tokens, entered, left)


def generate(model: Any, prompt: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
    """Greedy unless the options say otherwise."""
    mask = torch.ones_like(prompt) if mask is None else mask
    output: Any = model.generate(prompt, attention_mask=mask, **{"do_sample": False, **options})
    assert isinstance(output, Tensor)
    return output


def random_prompt(num_rows: int, num_tokens: int, seed: int = 0) -> Tensor:
    """Token numbers [rows, tokens], none of them a special one."""
    return torch.randint(2, 199, (num_rows, num_tokens), generator=torch.Generator().manual_seed(seed))
