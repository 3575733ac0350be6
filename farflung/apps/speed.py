"""How fast blocks and matrices compute here: measured on the very span that is to be served, in a second or two."""

import functools
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from farflung.model.layout import by_column
from farflung.model.packed import TOKENS_TYPICAL, packed_copy, packed_linear
from farflung.model.span import Span

DECODE_STEPS = 20
FORWARD_TOKENS = 256
SECONDS_MAX = 2.0
"""Stop early once so long has been spent on each measurement; slow machines get fewer samples."""
MATRIX_GAIN_MIN = 1.2
"""How much faster another order of a matrix must be: clear of the noise, so that equal machines choose alike."""
MATRIX_PROBE_BYTES = 64 << 20
"""What a measurement of matrices reads at least, so that caches do not answer for memory."""
MATRIX_PROBE_PASSES = 3


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


@functools.cache
def is_faster_by_column(num_rows: int, num_columns: int) -> bool:
    """Whether one token passes float32 matrices of this shape clearly faster in column order; a tenth of a second."""
    num_matrices = -(-MATRIX_PROBE_BYTES // (num_rows * num_columns * 4))
    rows_first = [torch.ones(num_rows, num_columns) for _ in range(num_matrices)]
    columns_first = [by_column(matrix) for matrix in rows_first]
    token_B1H = torch.ones(1, 1, num_columns)
    samples = [
        (_matrix_seconds(rows_first, token_B1H), _matrix_seconds(columns_first, token_B1H))
        for _ in range(MATRIX_PROBE_PASSES)
    ]
    by_row_seconds, by_column_seconds = (min(each) for each in zip(*samples, strict=True))
    return by_row_seconds > by_column_seconds * MATRIX_GAIN_MIN


@functools.cache
def is_faster_packed(num_rows: int, num_columns: int) -> bool:
    """Whether a few tokens pass float32 matrices of this shape faster by a packed copy; likewise."""
    if not torch.backends.mkldnn.is_available():
        return False
    num_matrices = -(-MATRIX_PROBE_BYTES // (num_rows * num_columns * 4))
    matrices = [torch.ones(num_rows, num_columns) for _ in range(num_matrices)]
    packed = [packed_copy(matrix) for matrix in matrices]
    if is_faster_by_column(num_rows, num_columns):
        matrices = [by_column(matrix) for matrix in matrices]
    tokens_B1H = torch.ones(TOKENS_TYPICAL, 1, num_columns)
    samples = [
        (_matrix_seconds(matrices, tokens_B1H), _matrix_seconds(packed, tokens_B1H, packed_linear))
        for _ in range(MATRIX_PROBE_PASSES)
    ]
    plain_seconds, packed_seconds = (min(each) for each in zip(*samples, strict=True))
    return plain_seconds > packed_seconds


@torch.inference_mode()
def _matrix_seconds(
    matrices: Iterable[torch.Tensor],
    tokens_B1H: torch.Tensor,
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.nn.functional.linear,
) -> float:
    started_at = time.perf_counter()
    for matrix in matrices:
        product(tokens_B1H, matrix)
    return time.perf_counter() - started_at
