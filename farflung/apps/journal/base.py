"""The model that a journal is about, in the journal's type of numbers."""

from typing import cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from farflung.systems.onebyte.quantised import QUANTISATIONS, Quantisation, quantise_, round_to_quantised_


def load_base(location: str, dtype: str, quantisation: str = "", *, is_packed: bool = False) -> PreTrainedModel:
    """The base model in the journal's type of numbers.

    `quantisation`: what the codes of this form stand for, as plain weights; with `is_packed` as codes, in less memory.

    Raises:
        ValueError: there is no such model, no such form, or the model has nothing to quantise.
    """
    if quantisation not in ("", *QUANTISATIONS):
        raise ValueError(f"quantisation must be one of {', '.join(QUANTISATIONS)}, or empty, not {quantisation!r}")
    model = _load(location, dtype)
    if quantisation:
        (quantise_ if is_packed else round_to_quantised_)(model, cast(Quantisation, quantisation))
    return model


def _load(location: str, dtype: str) -> PreTrainedModel:
    try:
        return AutoModelForCausalLM.from_pretrained(location, dtype=getattr(torch, dtype)).eval()
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{location!r} is no model that transformers can load ({reason}): give its folder") from None
