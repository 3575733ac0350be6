"""Reads from safetensors files just the tensors that a part of a model needs."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging

from farflung.model.cut import Prelude, build_skeleton, remove_ends
from farflung.model.source import ModelSource
from farflung.model.span import Span

NAMES_SHOWN_MAX = 5
"""Tensors that an error names before it says how many more there are."""


def load_span(
    source: ModelSource,
    first: int,
    last: int,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Span:
    """Load blocks [first, last), reading no other block's tensors.

    Raises ValueError for blocks out of range, for tensors that are missing, extra or of another shape (naming them),
    and for a family that cannot be cut.
    """
    if not 0 <= first < last <= source.num_blocks:
        raise ValueError(
            f"{source.name} has blocks 0 to {source.num_blocks}, and {first}:{last} is no range of them: "
            f"give FIRST:LAST with 0 <= FIRST < LAST <= {source.num_blocks}"
        )
    device = torch.device(device)
    skeleton = build_skeleton(source, dtype)
    layers = list(skeleton.layers)
    passthroughs = remove_ends(skeleton, source.hidden_size, dtype)
    skeleton.base.set_submodule(skeleton.layers_path, _only(layers, first, last))
    owned = tuple(f"{skeleton.layers_path}.{number}." for number in range(first, last))
    load_weights(skeleton.base, source, owned, device=device, dtype=dtype)
    span = Span(source, Prelude(skeleton, layers, passthroughs), layers[first:last], first, device=device, dtype=dtype)
    span.probe()
    return span


def _only(layers: list[nn.Module], first: int, last: int) -> nn.ModuleList:
    """The layers of a span at their own numbers, so that their tensors keep the names they have in the checkpoint."""
    return nn.ModuleList(layer if first <= number < last else nn.Identity() for number, layer in enumerate(layers))


def load_weights(
    model: PreTrainedModel,
    source: ModelSource,
    owned: tuple[str, ...],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Fill a model that lies on the meta device with its own tensors, leaving nothing on the meta device.

    `owned` are name prefixes of which the model must know every tensor: one it has no place for is an error.
    Renamed and fused tensors (experts, old checkpoints) go through transformers' own conversions.
    """
    conversions = get_model_conversion_mapping(model)
    wanted, extra = _choose_tensors(model, source, conversions, owned)
    config = LoadStateDictConfig(
        device_map={"": device},
        dtype=dtype,
        dtype_plan=model._get_dtype_plan(dtype),
        weight_mapping=cast(Any, conversions),
    )
    with contextlib.ExitStack() as files, no_progress_bar():
        tensors = {}
        for path, names in source.tensor_files(wanted).items():
            # Read, not mapped: a mapped file could change under a running server, and its pages would count as ours.
            file = files.enter_context(safe_open(str(path), framework="pt", backend="pread"))
            tensors.update({name: _TensorOnDisk(file.get_slice(name)) for name in names})
        report, _ = convert_and_load_state_dict_in_model(model, tensors, config)
    report.unexpected_keys |= extra
    model.mark_tied_weights_as_initialized(report)
    unread = report.missing_keys.copy()
    model._adjust_missing_and_unexpected_keys(report)  # forgives what the family says old checkpoints may lack or add
    missing = report.missing_keys - model.all_tied_weights_keys.keys()
    _refuse_unfit(source, missing, report.unexpected_keys, [name for name, *_ in report.mismatched_keys])
    cast(Any, model)._move_missing_keys_from_meta_to_device(unread, {"": device}, None, None)
    _mark_read(model, unread)
    model._initialize_missing_keys(False)  # computes what no checkpoint holds, such as rotary frequencies
    model.tie_weights(missing_keys=unread, recompute_mapping=False)
    model.eval().requires_grad_(False)


def _mark_read(model: PreTrainedModel, unread: set[str]) -> None:
    """Tell transformers which modules are complete, so that it initializes only those that are not."""
    unread = unread | {name for name, _ in model.named_non_persistent_buffers()}
    owners = {name.rpartition(".")[0] for name in unread}
    for name, module in model.named_modules():
        if name not in owners:
            cast(Any, module)._is_hf_initialized = True


class _TensorOnDisk:
    """A tensor that is read when it is indexed, into memory aligned for matrix kernels (which a file's bytes are not).

    Alignment decides how kernels group their sums, so it is what makes every machine's results equal to the last bit.
    """

    def __init__(self, on_disk: Any) -> None:
        self._on_disk = on_disk

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self._on_disk[index].clone()


def _choose_tensors(
    model: PreTrainedModel, source: ModelSource, conversions: list[Any], owned: tuple[str, ...]
) -> tuple[list[str], set[str]]:
    """The checkpoint's tensors that have a place in the model, and those under the owned prefixes that have none."""
    places = model.state_dict()
    prefix = model.base_model_prefix
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    wanted: list[str] = []
    extra: set[str] = set()
    for name in source.weight_map:
        for candidate in (
            rename_source_key(name, renamings, converters, prefix, places)[0],
            rename_source_key(name, [], [], prefix, places)[0],
        ):
            if candidate in places:
                wanted.append(name)
                break
        else:
            if re.sub(rf"^{re.escape(prefix)}\.", "", name).startswith(owned):
                extra.add(name)
    return wanted, extra


def _refuse_unfit(source: ModelSource, missing: Iterable[str], extra: Iterable[str], misshapen: Iterable[str]) -> None:
    problems = [
        f"{what} {_names(names)}"
        for what, names in (("lacks", missing), ("has no use for", extra), ("has another shape for", misshapen))
        if names
    ]
    if problems:
        raise ValueError(
            f"the checkpoint of {source.name} does not fit its configuration (it {', and it '.join(problems)}): "
            f"download or save the model again"
        )


def _names(names: Iterable[str]) -> str:
    ordered = sorted(names)
    rest = len(ordered) - NAMES_SHOWN_MAX
    return ", ".join(ordered[:NAMES_SHOWN_MAX]) + (f" and {rest} more" if rest > 0 else "")


@contextlib.contextmanager
def no_progress_bar() -> Iterator[None]:
    """What is loaded in here shows none of transformers' own."""
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
