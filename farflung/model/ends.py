"""The client's half of a model: a real transformers model whose decoder layers are elsewhere.

The model is an instance of the family's own class, so `generate` and everything built on it works; in place of the
decoder layers sits one bridge that hands hidden states to a callable. What the family's forward does before its
layers (scaling, absolute positions) happens here, once, by its own code."""

import contextlib
import functools
import inspect
import itertools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from farflung.model.cut import build_skeleton
from farflung.model.load import load_weights
from farflung.model.source import ModelSource

ELSEWHERE = "farflung_elsewhere"
"""The name of an attention that needs no mask: transformers builds none for one it knows no masks of."""


class BlocksCallable(Protocol):
    """Passes hidden states through all blocks, wherever they are."""

    def __call__(
        self,
        hidden_BTH: Tensor,
        *,
        position_ids_BT: Tensor | None,
        attention_mask_BS: Tensor | None,
        past_key_values: Cache | None,
        use_cache: bool,
    ) -> Tensor:
        """Return [B, T, H]; None for positions that count on from the cache, and for a mask that hides nothing."""
        ...


_arguments: ContextVar[dict[str, Any]] = ContextVar("what the forward of a model with remote blocks was given")
"""A variable of the running thread: one model may be used from many threads at once."""


class _Bridge(nn.Module):
    """Stands where the decoder layers stood."""

    def __init__(self, blocks: BlocksCallable) -> None:
        super().__init__()
        self.blocks = blocks
        self.returns_tuple = False

    def forward(self, hidden_BTH: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        """Hand hidden states to the blocks, with what the model's forward was given."""
        hidden = self.blocks(hidden_BTH, **_arguments.get({}))
        return (hidden,) if self.returns_tuple else hidden


def load_ends(
    source: ModelSource,
    blocks: BlocksCallable,
    *,
    new_cache: Callable[[], Cache] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Load embeddings, final norm and head, reading no block's tensors, and put `blocks` in the layers' place.

    `new_cache` makes the cache that `generate` uses when it is given none; it reaches `blocks` untouched, and its
    `__len__` must not be 0, for some families test a cache for truth. Raises ValueError for a family that cannot be cut
    and for tensors that do not fit.
    """
    skeleton = build_skeleton(source, dtype)
    model, base = skeleton.model, skeleton.base
    base.set_submodule(skeleton.layers_path, nn.ModuleList([]))
    load_weights(model, source, (), device=torch.device(device), dtype=dtype)
    bridge = _Bridge(blocks)
    base.set_submodule(skeleton.layers_path, nn.ModuleList([bridge]))
    _learn_form(model, base, bridge)
    _read_generation_config(model, source)
    model.__class__ = _distributed_class(type(model))
    distributed = cast(Any, model)
    distributed._new_cache = new_cache
    # Whose forward runs the layers and the final norm; in a tuple, so that it is not registered a second time.
    distributed._runner = (base.get_submodule(skeleton.layers_path.rpartition(".")[0]),)
    return model


def _identity(hidden_BTH: Tensor, **_arguments: Any) -> Tensor:
    return hidden_BTH


@torch.no_grad()
def _learn_form(model: PreTrainedModel, base: PreTrainedModel, bridge: _Bridge) -> None:
    """Find out whether the family does without masks, and whether its layers return a tensor or a tuple."""
    blocks, bridge.blocks = bridge.blocks, _identity
    token_ids = torch.zeros(2, 3, dtype=torch.long, device=base.device)
    for attention, bridge.returns_tuple in itertools.product(
        (ELSEWHERE, model.config._attn_implementation), (False, True)
    ):
        model.config._attn_implementation = attention
        with contextlib.suppress(AttributeError, TypeError, RuntimeError):
            # A tuple's first member is taken: from a bare tensor that would be the batch's first row.
            if base(input_ids=token_ids, use_cache=False).last_hidden_state.shape[:2] == token_ids.shape:
                bridge.blocks = blocks
                return
    raise ValueError(
        f"the family {model.config.model_type!r} does not let its layers be replaced, "
        f""
        f"so it cannot be cut: choose another family"
    )


def _read_generation_config(model: Any, source: ModelSource) -> None:
    """Take over the checkpoint's own defaults of `generate`, as transformers does for a whole model."""
    hub = {"cache_dir": None, "force_download": False, "proxies": None, "local_files_only": False, "token": None}
    hub |= {"revision": source.commit, "subfolder": "", "trust_remote_code": False}
    model.adjust_generation_fn(None, False, False, source.location, **hub)


class _Distributed:
    """Mixed into a family's class: a forward that leaves masks and caches to the blocks, wherever they are."""

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Let `generate` use the cache of whoever owns the blocks when it is given none."""
        this = cast(Any, self)
        if generation_config.use_cache and model_kwargs.get("past_key_values") is None and this._new_cache is not None:
            model_kwargs["past_key_values"] = this._new_cache()
        else:
            super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)  # type: ignore[misc]


@functools.cache
def _distributed_class(family: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """A subclass of the family's class, with its signatures, since `generate` inspects them."""
    signature = inspect.signature(family.forward)

    @functools.wraps(family.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args:
            kwargs = {**signature.bind_partial(self, *args).arguments, **kwargs}
            kwargs.pop("self")
        return_dict = kwargs.pop("return_dict", self.config.return_dict)
        arguments = _bridge_arguments(self, kwargs)
        cache = arguments["past_key_values"]
        token = _arguments.set(arguments)
        try:
            output = family.forward(self, **kwargs)
        finally:
            _arguments.reset(token)  # else the cache would live until the thread's next forward
        if cache is not None:
            output.past_key_values = cache
        return output if return_dict else output.to_tuple()

    namespace = {"forward": forward, "__module__": family.__module__, "__doc__": family.__doc__}
    return type(f"Distributed{family.__name__}", (_Distributed, family), namespace)


def _bridge_arguments(model: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take what belongs to the blocks out of a forward's arguments."""
    if kwargs.get("output_hidden_states") or kwargs.get("output_attentions"):
        raise ValueError(
            "the blocks of this model are elsewhere, so their hidden states and attentions are not here: "
            "leave output_hidden_states and output_attentions out"
        )
    cache: Cache | None = kwargs.pop("past_key_values", None)
    use_cache = kwargs.pop("use_cache", None)
    if use_cache is None:
        use_cache = cache is not None or (model.config.use_cache and not torch.is_grad_enabled())
    if cache is None and use_cache and model._new_cache is not None:
        cache = model._new_cache()
    tokens = kwargs.get("input_ids")
    if tokens is None:
        tokens = kwargs["inputs_embeds"]
    past = 0 if cache is None else cache.get_seq_length()
    plain = torch.arange(past, past + tokens.shape[1], device=tokens.device).unsqueeze(0)
    position_ids = kwargs.get("position_ids")
    if position_ids is None or bool((position_ids == plain).all()):
        position_ids = None
        kwargs["position_ids"] = plain
    kwargs["use_cache"] = False
    return {
        "position_ids_BT": position_ids,
        "attention_mask_BS": _padding_mask(kwargs.pop("attention_mask", None)),
        "past_key_values": cache,
        "use_cache": use_cache,
    }


def _padding_mask(mask: Any) -> Tensor | None:
    """The mask if it hides anything."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise ValueError(
            "the attention mask must be two-dimensional (1 for tokens, 0 for padding): prepare no other masks"
        )
    return None if bool(mask.all()) else mask
