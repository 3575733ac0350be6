"""The model that a journal is about, in the journal's type of numbers."""

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel


def load_base(location: str, dtype: str) -> PreTrainedModel:
    """The base model in the journal's type of numbers.

    Raises:
        ValueError: there is no such model.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(location, dtype=getattr(torch, dtype)).eval()
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{location!r} is no model that transformers can load ({reason}): give its folder") from None
