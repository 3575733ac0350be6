"""Ways of generating that a swarm must survive in, each as a function of any transformers model."""

from collections.abc import Callable
from typing import Any

import torch

NUM_NEW_TOKENS = 8
COMMON = {"max_new_tokens": NUM_NEW_TOKENS, "min_new_tokens": NUM_NEW_TOKENS, "pad_token_id": 0}

Mode = Callable[[Any, torch.Tensor], torch.Tensor]


def prefill(model: Any, prompt: torch.Tensor) -> torch.Tensor:
    """One long forward."""
    cached = {"use_cache": True, "past_key_values": model._blocks.open_cache(64)} if hasattr(model, "_blocks") else {}
    with torch.inference_mode():
        return model(prompt, **cached).logits


def decode(model: Any, prompt: torch.Tensor) -> torch.Tensor:
    return model.generate(prompt, do_sample=False, **COMMON)


def sample(model: Any, prompt: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(7)
    return model.generate(prompt, do_sample=True, temperature=0.9, **COMMON)


def beam(model: Any, prompt: torch.Tensor) -> torch.Tensor:
    return model.generate(prompt, do_sample=False, num_beams=4, **COMMON)


def lookup(model: Any, prompt: torch.Tensor) -> torch.Tensor:
    return model.generate(prompt, do_sample=False, prompt_lookup_num_tokens=3, **COMMON)


def padded(model: Any, prompt: torch.Tensor) -> torch.Tensor:
    """A batch whose second row is shorter, padded on the left."""
    mask = torch.ones_like(prompt)
    mask[-1, :3] = 0
    return model.generate(prompt * mask, attention_mask=mask, do_sample=False, **COMMON)


def rollback(model: Any, prompt: torch.Tensor) -> torch.Tensor:
    """Decode, cut the cache back twice (as an editor or a rejected draft does), and decode on."""
    if not hasattr(model, "_blocks"):
        return _uncached_rollback(model, prompt)
    outputs: list[torch.Tensor] = []
    with torch.inference_mode(), model.inference_session(num_tokens_max=128) as cache:
        logits = model(prompt, past_key_values=cache, use_cache=True).logits[:, -1:]
        for back in (0, 0, 2, 0, 0, 3, 0, 0):
            if back:
                cache.crop(-back)
            outputs.append(logits)
            logits = model(logits.argmax(-1), past_key_values=cache, use_cache=True).logits
    return torch.cat([*outputs, logits], dim=1)


def _uncached_rollback(model: Any, prompt: torch.Tensor) -> torch.Tensor:
    """The same, forgetting by computing everything anew."""
    outputs: list[torch.Tensor] = []
    with torch.inference_mode():
        held = prompt
        logits = model(held, use_cache=False).logits[:, -1:]
        for back in (0, 0, 2, 0, 0, 3, 0, 0):
            held = held[:, : held.shape[1] - back]
            outputs.append(logits)
            held = torch.cat([held, logits.argmax(-1)], dim=1)
            logits = model(held, use_cache=False).logits[:, -1:]
    return torch.cat([*outputs, logits], dim=1)


MODES: dict[str, Mode] = {mode.__name__: mode for mode in (prefill, decode, sample, beam, lookup, padded, rollback)}


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Tokens are equal exactly, logits within float32 rounding."""
    if one.is_floating_point():
        return one.shape == other.shape and torch.allclose(one, other, atol=1e-4)
    return torch.equal(one, other)
