"""How fast blocks compute here: measured on the very span that is to be served, in a second or two."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from farflung.model.span import Span

DECODE_STEPS = 20
FORWARD_TOKENS = 256
SECONDS_MAX = 2.0
"""Stop early once so long has been spent on each measurement; slow machines get fewer samples."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What a server announces."""

    blocks_per_second: float
    """Blocks that one token of one session passes per second."""
    forward_tokens_per_second: float
    """Tokens per second through one block in a long forward."""


def measure(span: Span) -> Speed:
    """Time single tokens and one longer forward through `span`; medians, after a warm-up."""
    num_blocks = span.last - span.first
    token_B1H = torch.zeros(1, 1, span.hidden_size)
    prompt_BTH = torch.zeros(1, FORWARD_TOKENS, span.hidden_size)
    cache = span.new_cache()
    decode = _median_seconds(lambda: span.forward(token_B1H, cache), DECODE_STEPS)
    forward = _median_seconds(lambda: span.forward(prompt_BTH, None), 3)
    return Speed(num_blocks / decode, FORWARD_TOKENS * num_blocks / forward)


def _median_seconds(work: Callable[[], torch.Tensor], num_samples: int) -> float:
    _finish(work())
    samples: list[float] = []
    began_at = time.perf_counter()
    while not samples or (len(samples) < num_samples and time.perf_counter() - began_at < SECONDS_MAX):
        started_at = time.perf_counter()
        _finish(work())
        samples.append(time.perf_counter() - started_at)
    return statistics.median(samples)


def _finish(output: torch.Tensor) -> None:
    """Wait for the device."""
    output[0, 0, 0].item()
