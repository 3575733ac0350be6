"""The general cut: a family's own decoder layers, called as its own forward says.

A transformers base model's forward does three things: it prepares hidden states (embeddings, positions), it calls
its layers with masks and rotary embeddings that it made, and it normalises. The cut keeps the middle. The *prelude*
is the family's own base model with a recorder in every layer's place: running it tells with which arguments each
layer is to be called, so masks, rotary embeddings and sliding windows stay the family's own code, while whatever it
does to the hidden states themselves is ignored (the client's half has done that already).

A family is cut exactly if those arguments depend on shapes, positions and padding alone, and if hidden states pass
from layer to layer untouched. `Prelude.probe` checks both by running it, so no list of family names is kept.
"""

import copy
import itertools
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from farflung.model.source import ModelSource


@dataclass(frozen=True)
class Call:
    """How the family calls one layer: all but the hidden states, which are the first argument."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Skeleton:
    """A family's causal model without weights, on the meta device, and where its decoder layers sit in it."""

    model: PreTrainedModel
    base: PreTrainedModel
    layers: nn.ModuleList
    layers_path: str
    """Name of the list of layers within the base model, as its tensors are named."""


def build_skeleton(source: ModelSource, dtype: torch.dtype) -> Skeleton:
    """Build the family's model without memory and find its layers; ValueError where it has none to cut between."""
    config = copy.deepcopy(source.config)
    with torch.device("meta"):
        model = source.causal_class._from_config(config, dtype=dtype)
    model.eval().requires_grad_(False)
    base = _base_of(model)
    found: list[tuple[str, nn.ModuleList]] = []
    for name, module in base.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, _ in found)
        if isinstance(module, nn.ModuleList) and len(module) == source.num_blocks and not inside:
            found.append((name, module))
    if len(found) != 1:
        raise ValueError(
            f"the family {config.model_type!r} keeps its decoder layers in {len(found)} lists where one is needed, "
            f"so it cannot be cut by layer: choose another family"
        )
    path, layers = found[0]
    if any(getattr(module, "is_causal", True) is False for module in layers.modules()):
        raise ValueError(
            f"the layers of the family {config.model_type!r} look at later tokens too, so it does not generate text "
            f"token by token: choose a causal language model"
        )
    return Skeleton(model, base, layers, path)


def _base_of(model: PreTrainedModel) -> PreTrainedModel:
    """The model below the head; a few families name it otherwise than they say, but it is the only model they hold."""
    if model.base_model is not model:
        return cast(PreTrainedModel, model.base_model)
    within = [module for module in model.children() if isinstance(module, PreTrainedModel)]
    if len(within) != 1:
        raise ValueError(
            f"the family {model.config.model_type!r} does not separate its head from the model below, "
            f"so it cannot be cut by layer: choose another family"
        )
    return cast(PreTrainedModel, within[0])


class Passthrough(nn.Module):
    """Stands for an embedding or a norm that belongs to the client's half: adds nothing to a stream of hidden states.

    `noise` is what it would have added; the probe sets it to see whether anything but hidden states depends on it.
    """

    def __init__(self, hidden_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.dtype = dtype
        self.noise = 0.0

    def forward(self, stream: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Hidden states come back as they are; positions or masks, which it would embed, give a zero of their width."""
        if stream.is_floating_point() and stream.shape[-1] == self.hidden_size:
            return stream + self.noise if self.noise else stream
        return torch.full((*[1] * stream.ndim, self.hidden_size), self.noise, device=stream.device, dtype=self.dtype)


def remove_ends(skeleton: Skeleton, hidden_size: int, dtype: torch.dtype) -> list[Passthrough]:
    """Replace everything with weights outside the layers (embeddings, norms) by passthroughs, and return those."""
    within = f"{skeleton.layers_path}."
    owners = [
        name for name, module in skeleton.base.named_modules() if module._parameters and not name.startswith(within)
    ]
    if "" in owners:
        raise ValueError(
            f"the family {skeleton.base.config.model_type!r} keeps weights beside its layers that they may all use, "
            f"so it cannot be cut by layer: choose another family"
        )
    passthroughs = [Passthrough(hidden_size, dtype) for _ in owners]
    for name, passthrough in zip(owners, passthroughs, strict=True):
        skeleton.base.set_submodule(name, passthrough)
    return passthroughs


class Recorder(nn.Module):
    """Takes a layer's place in the prelude and notes how it is called."""

    def __init__(self, layer: nn.Module, calls: list[tuple[Tensor, Call]]) -> None:
        super().__init__()
        self._original = [layer]  # in a list, so that its tensors are not this module's
        self._calls = calls
        self.returns_tuple = False
        self.step = 0.0
        """Added to the hidden states by the probe, to see that they reach the next layer untouched."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Note the call; hidden states pass through."""
        hidden, rest = (kwargs.pop("hidden_states"), args) if "hidden_states" in kwargs else (args[0], args[1:])
        self._calls.append((hidden, Call(rest, kwargs)))
        if self.step:
            hidden = hidden + self.step
        return (hidden,) if self.returns_tuple else hidden

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._original[0], name)  # what a forward may ask of its layer, such as its attention type


class Prelude:
    """What a family's forward does before and around its layers, able to say how each of them is to be called.

    One forward at a time: the recorders are shared.
    """

    def __init__(self, skeleton: Skeleton, layers: list[nn.Module], passthroughs: list[Passthrough]) -> None:
        """Put recorders in the layers' places; the skeleton must have lost its ends (`remove_ends`)."""
        self.base = skeleton.base
        self.family = skeleton.base.config.model_type
        self._calls: list[tuple[Tensor, Call]] = []
        self._recorders = [Recorder(layer, self._calls) for layer in layers]
        self._passthroughs = passthroughs
        self.base.set_submodule(skeleton.layers_path, nn.ModuleList(self._recorders))
        self._stateful_rotary = _stateful_rotary(self.base)

    @torch.no_grad()
    def calls(
        self,
        hidden_BTH: Tensor,
        cache: Cache | None,
        position_ids_BT: Tensor | None = None,
        attention_mask_BS: Tensor | None = None,
    ) -> list[Call]:
        """How the family would call each of the model's layers for these hidden states (their values do not matter)."""
        self._run(hidden_BTH, cache, position_ids_BT, attention_mask_BS)
        calls = [call for _, call in self._calls]
        self._calls.clear()
        return calls

    def _run(self, hidden_BTH: Tensor, cache: Cache | None, position_ids: Tensor | None, mask: Tensor | None) -> Tensor:
        self._calls.clear()
        for name, pristine in self._stateful_rotary:
            self.base.set_submodule(name, copy.deepcopy(pristine))
        output = self.base(
            inputs_embeds=hidden_BTH,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state

    @torch.no_grad()
    def probe(self, cache: Cache, hidden_size: int, device: torch.device, dtype: torch.dtype) -> None:
        """Check on a small run that the cut is exact for this family; a ValueError says why it is not.

        Twice over hidden states of different values, once with passthroughs that disturb: the calls must not differ.
        """
        plain, disturbed = (
            torch.full((1, 3, hidden_size), value, device=device, dtype=dtype) for value in (0.25, -2.0)
        )
        self.learn_form(plain, cache)
        before = self.calls(plain, cache)
        for passthrough in self._passthroughs:
            passthrough.noise = 1.0
        try:
            after = self.calls(disturbed, cache)
        finally:
            for passthrough in self._passthroughs:
                passthrough.noise = 0.0
        if not all(any(value is cache for value in (*call.args, *call.kwargs.values())) for call in before):
            raise ValueError(
                f"not every layer of the family {self.family!r} keeps its attention in a cache of keys and values, "
                f"so it cannot be rolled back or resumed elsewhere: choose another family"
            )
        if not _same(before, after):
            raise ValueError(
                f"the layers of the family {self.family!r} are given more than hidden states, positions and masks, "
                f"so they cannot be cut exactly: choose another family"
            )

    def learn_form(self, hidden: Tensor, cache: Cache) -> None:
        """Find out whether layers return hidden states bare or in a tuple, and check that they reach the next one."""
        reason = "something happens to the hidden states between its layers"
        for returns_tuple in (False, True):
            for recorder in self._recorders:
                recorder.returns_tuple = returns_tuple
            try:
                if self._stream_is_untouched(hidden, cache):
                    return
            except (ValueError, TypeError, AttributeError, RuntimeError, IndexError, KeyError) as error:
                reason = f"its forward fails on hidden states alone: {error}"
        raise ValueError(f"the family {self.family!r} cannot be cut by layer ({reason}): choose another family")

    def _stream_is_untouched(self, hidden: Tensor, cache: Cache) -> bool:
        """Whether each layer is called once, in order, with exactly what the one before it returned."""
        for recorder in self._recorders:
            recorder.step = 1.0
        try:
            self._run(hidden, cache, None, None)
        finally:
            for recorder in self._recorders:
                recorder.step = 0.0
        streams = [stream for stream, _ in self._calls]
        self._calls.clear()
        if len(streams) != len(self._recorders):
            return False
        return all(_same(given + 1.0, received) for given, received in itertools.pairwise(streams))


def _stateful_rotary(base: nn.Module) -> list[tuple[str, nn.Module]]:
    """Rotary embeddings that change with the longest sequence seen: each forward must start from a fresh one.

    A server sees many sessions; transformers' dynamic scaling would carry one session's length into the next.
    """
    found = []
    for name, module in base.named_modules():
        rope_type = getattr(module, "rope_type", None)
        types = rope_type.values() if isinstance(rope_type, dict) else [rope_type]
        if any(isinstance(each, str) and "dynamic" in each for each in types):
            found.append((name, module))
    return found


def _same(left: Any, right: Any) -> bool:
    """Whether two captured calls carry the same arguments: tensors by value, containers by content."""
    if isinstance(left, Tensor):
        # Tensors of the meta device have no values, so there shapes decide.
        return isinstance(right, Tensor) and left.shape == right.shape and (left.is_meta or torch.equal(left, right))
    if isinstance(left, Call):
        return isinstance(right, Call) and _same(left.args, right.args) and _same(left.kwargs, right.kwargs)
    if isinstance(left, list | tuple):
        return type(left) is type(right) and len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(_same(left[k], right[k]) for k in left)
    return left is right or bool(left == right)
