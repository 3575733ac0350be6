"""How a family calls its layers for one unpadded token, learned once, so that decoding need not ask it again.

Asking the family's own forward costs masks, rotary embeddings and bookkeeping for every token. For one new token
without padding the answer has a simple form: a mask that hides nothing (all that the cache hands out may be seen)
and rotary embeddings that depend on the position alone. The plan is *learned* by running the prelude and *checked*
against it: in every stretch of positions the table made at once must equal, bit for bit, what the prelude gives for
a single token. Where it does not (a family of another form, rotary scaling that changes with length) there is no
plan and the prelude is asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from farflung.model.cache import SpanCache, windows_of
from farflung.model.cut import Call, Prelude

STRETCH_TOKENS = 256
"""Positions whose table is made at once."""
CHECKED_ROW = 1
"""The row of a stretch that is checked: at position 0 no rotary embedding turns, whatever its frequencies."""


class _CacheSlot:
    """Where the cache goes."""


CACHE_SLOT = _CacheSlot()


@dataclass(frozen=True, eq=False)
class Table:
    """A tensor argument by position: row p of axis 1 belongs to position p of the stretch."""

    rows: Tensor


@dataclass(frozen=True, eq=False)
class OpenMask:
    """A mask [1, 1, 1, S] that hides none of the S keys it is for, given as the family gives it.

    Leaving it out would be as right, but the attention kernel without a mask rounds differently.
    """

    mask: Tensor
    """For a full window, or of one key where attention has no window."""
    window: int | None
    """Keys that are seen at most."""
    is_for_full_window: bool
    """Whether the family gives no mask before the window is full."""

    def at(self, num_keys: int) -> Tensor | None:
        """The mask over this many keys, before the window is applied."""
        if self.window is not None and num_keys >= self.window:
            return self.mask
        return None if self.is_for_full_window else self.mask[..., :1].expand(1, 1, 1, num_keys)


@dataclass(frozen=True)
class Form:
    """One way of calling layers: constants, and where the cache and the tables go."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def call(self, row: int, cache: SpanCache) -> Call:
        """The call for the token in this row of the stretch."""
        args = tuple(_fill(value, row, cache) for value in self.args)
        return Call(args, {name: _fill(value, row, cache) for name, value in self.kwargs.items()})

    def ragged_call(self, cuts: Sequence[tuple["Form", int, int]], batch: Cache) -> Call:
        """The call for tokens of several stretches side by side: each stretch's form like this one, the first row, and
        the number of rows."""
        args = tuple(
            _fill_side_by_side(value, [(form.args[index], row, taken) for form, row, taken in cuts], batch)
            for index, value in enumerate(self.args)
        )
        kwargs = {
            name: _fill_side_by_side(value, [(form.kwargs[name], row, taken) for form, row, taken in cuts], batch)
            for name, value in self.kwargs.items()
        }
        return Call(args, kwargs)


@dataclass(frozen=True)
class Stretch:
    """The forms of calling in a stretch of positions, and which of them each layer of the model takes."""

    forms: list[Form]
    form_of_layer: list[int]


def _fill(value: Any, row: int, cache: SpanCache) -> Any:
    if value is CACHE_SLOT:
        return cache
    if type(value) is Table:
        return value.rows.narrow(1, row, 1)
    if type(value) is OpenMask:
        return value.at(cache.length + 1)
    if type(value) is tuple:
        return tuple(_fill(each, row, cache) for each in value)
    return value


def _fill_side_by_side(value: Any, cuts: Sequence[tuple[Any, int, int]], batch: Cache) -> Any:
    if value is CACHE_SLOT:
        return batch
    if type(value) is Table:
        return torch.cat([table.rows.narrow(1, row, taken) for table, row, taken in cuts], dim=1)
    if type(value) is OpenMask:
        return None
    if type(value) is tuple:
        return tuple(
            _fill_side_by_side(each, [(whole[index], row, taken) for whole, row, taken in cuts], batch)
            for index, each in enumerate(value)
        )
    return value


class _NoPlan(Exception):
    """The family calls its layers in a form that the plan does not know."""


class DecodePlan:
    """Calls for one unpadded token at any position."""

    def __init__(self, prelude: Prelude, config: PreTrainedConfig, hidden_BTH: Tensor) -> None:
        """`hidden_BTH` [1, 1, H] stands for hidden states, whose values do not matter (the probe has checked it)."""
        self._prelude = prelude
        self._config = config
        self._hidden = hidden_BTH
        self._far = max((window for window in windows_of(config) if window is not None), default=0) + STRETCH_TOKENS
        self._stretches: dict[int, Stretch | None] = {}

    def calls(self, position: int, cache: SpanCache) -> list[Call] | None:
        """How each layer of the model is called for the token at `position`, or None if the prelude has to be asked."""
        number, row = divmod(position, STRETCH_TOKENS)
        stretch = self._stretch(number)
        if stretch is None:
            return None
        calls = [form.call(row, cache) for form in stretch.forms]
        return [calls[number] for number in stretch.form_of_layer]

    def ragged_calls(self, pieces: Sequence[tuple[int, int]], batch: Cache) -> list[Call] | None:
        """How each layer is called for tokens side by side, of several sequences whose attention needs no masks:
        `pieces` are the first position and the number of tokens of each. None if it is not known."""
        cuts: list[tuple[Stretch, int, int]] = []
        for start, num_tokens in pieces:
            at = start
            while at < start + num_tokens:
                number, row = divmod(at, STRETCH_TOKENS)
                stretch = self._stretch(number)
                if stretch is None or (cuts and stretch.form_of_layer != cuts[0][0].form_of_layer):
                    return None
                taken = min(start + num_tokens - at, STRETCH_TOKENS - row)
                cuts.append((stretch, row, taken))
                at += taken
        model = cuts[0][0]
        calls = [
            form.ragged_call([(stretch.forms[index], row, taken) for stretch, row, taken in cuts], batch)
            for index, form in enumerate(model.forms)
        ]
        return [calls[number] for number in model.form_of_layer]

    def knows(self, position: int) -> bool:
        """Whether the token at `position` is decoded without asking the prelude, as far as has been learned."""
        return self._stretches.get(position // STRETCH_TOKENS) is not None

    def _stretch(self, number: int) -> Stretch | None:
        if number not in self._stretches:
            self._stretches[number] = self._learn(number * STRETCH_TOKENS)
        return self._stretches[number]

    def _learn(self, start: int) -> Stretch | None:
        near, near_cache = self._single(start + CHECKED_ROW)
        far, far_cache = self._single(start + self._far)
        stretch = self._prelude.calls(
            self._hidden.expand(1, STRETCH_TOKENS, -1),
            None,
            torch.arange(start, start + STRETCH_TOKENS, device=self._hidden.device).unsqueeze(0),
        )
        form_of_layer, leaders = _grouped(near, far)
        try:
            forms = [_form(near[leader], near_cache, far[leader], far_cache, stretch[leader]) for leader in leaders]
        except _NoPlan:
            return None
        return Stretch(forms, form_of_layer)

    def _single(self, position: int) -> tuple[list[Call], SpanCache]:
        cache = SpanCache(self._config, 0, self._config.num_hidden_layers)
        cache.advance(position)  # the prelude asks a cache for its length only, so an empty one will do
        return self._prelude.calls(self._hidden, cache), cache


def _grouped(near: list[Call], far: list[Call]) -> tuple[list[int], list[int]]:
    """Number alike the layers that are called with the same objects: each layer's number, each number's first layer.

    Far positions count as well: sliding and full attention are called alike until the window is full.
    """
    numbers: dict[tuple[Any, ...], int] = {}
    leaders: list[int] = []
    groups = []
    for index, pair in enumerate(zip(near, far, strict=True)):
        key = tuple(_identity(value) for call in pair for value in (*call.args, *call.kwargs.values()))
        if key not in numbers:
            numbers[key] = len(leaders)
            leaders.append(index)
        groups.append(numbers[key])
    return groups, leaders


def _identity(value: Any) -> Any:
    return tuple(map(id, value)) if isinstance(value, tuple) else id(value)


def _form(near: Call, near_cache: SpanCache, far: Call, far_cache: SpanCache, stretch: Call) -> Form:
    if len(near.args) != len(far.args) or near.kwargs.keys() != far.kwargs.keys():
        raise _NoPlan
    if len(near.args) != len(stretch.args) or near.kwargs.keys() != stretch.kwargs.keys():
        raise _NoPlan

    def learn(a: Any, b: Any, c: Any) -> Any:
        if a is near_cache and b is far_cache:
            return CACHE_SLOT
        if _is_open(a) and _is_open(b):
            return _mask(a, b, far_cache.length + 1)
        if isinstance(a, tuple) and isinstance(b, tuple) and isinstance(c, tuple) and len(a) == len(b) == len(c):
            return tuple(map(learn, a, b, c))
        if isinstance(a, Tensor) and isinstance(c, Tensor):
            return _table(a, c)
        if isinstance(a, bool | int | float | str) and type(a) is type(b) and a == b:
            return a
        raise _NoPlan

    return Form(
        tuple(map(learn, near.args, far.args, stretch.args)),
        {name: learn(value, far.kwargs[name], stretch.kwargs[name]) for name, value in near.kwargs.items()},
    )


def _is_open(mask: Any) -> bool:
    """Whether an argument is no mask, or a four-dimensional mask that hides nothing."""
    if mask is None:
        return True
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        return False
    return bool(mask.all() if mask.dtype == torch.bool else (mask == 0).all())


def _mask(near: Tensor | None, far: Tensor | None, num_keys_far: int) -> OpenMask | None:
    if far is None:
        return None
    window = far.shape[3] if far.shape[3] < num_keys_far else None
    return OpenMask(far if window is not None else far[..., :1], window, is_for_full_window=near is None)


def _table(single: Tensor, stretch: Tensor) -> Table:
    """The stretch as a table, if its checked row is what the prelude gives for a single token there."""
    if stretch.ndim < 2 or stretch.shape[:2] != (1, STRETCH_TOKENS):
        raise _NoPlan
    if not torch.equal(stretch.narrow(1, CHECKED_ROW, 1), single):
        raise _NoPlan
    return Table(stretch)
