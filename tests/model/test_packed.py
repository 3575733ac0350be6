"""Packed copies of matrices: the same values, for a few tokens, and never those of former weights."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from farflung.apps.speed import is_faster_packed
from farflung.model import layout
from farflung.model.layout import order_for_decoding
from farflung.model.load import load_span
from farflung.model.packed import TOKENS_MAX, TOKENS_MIN, PackedLinear, pack_for_batches
from farflung.model.source import ModelSource

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")


def always(num_rows: int, num_columns: int) -> bool:
    return True


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MATRIX_BYTES_MIN", 0)


@pytest.mark.parametrize("num_tokens", [1, TOKENS_MIN, 8, TOKENS_MAX, TOKENS_MAX + 1])
def test_any_number_of_tokens_gives_what_the_matrix_gives(num_tokens: int) -> None:
    plain = nn.Linear(48, 80)
    packed = nn.ModuleList([nn.Linear(48, 80)])
    packed.load_state_dict({f"0.{name}": value for name, value in plain.state_dict().items()})
    order_for_decoding(packed, always)
    assert pack_for_batches(packed, always) == 48 * 80 * 4
    tokens = torch.randn(1, num_tokens, 48)
    with torch.inference_mode():
        torch.testing.assert_close(nn.Sequential(*packed)(tokens), plain(tokens), atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_the_matrix() -> None:
    layer = nn.Linear(16, 8)
    pack_for_batches(nn.ModuleList([layer]), always)
    assert isinstance(layer, PackedLinear)
    tokens = torch.randn(TOKENS_MIN, 16, requires_grad=True)
    layer.forward(tokens).sum().backward()
    assert tokens.grad is not None
    torch.testing.assert_close(tokens.grad, layer.weight.sum(0).expand(TOKENS_MIN, 16))


def test_only_large_float32_matrices_that_are_faster_get_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MATRIX_BYTES_MIN", 4096)
    layers = [nn.Linear(64, 64), nn.Linear(8, 8), nn.Linear(64, 64, dtype=torch.bfloat16), nn.Linear(64, 128)]
    pack_for_batches(nn.ModuleList(layers), lambda num_rows, num_columns: num_rows == 64)
    assert [type(layer) for layer in layers] == [PackedLinear, nn.Linear, nn.Linear, nn.Linear]
    assert isinstance(is_faster_packed(64, 64), bool)


def test_sessions_side_by_side_after_an_install_compute_with_the_new_weights(
    source_of: Callable[[str], ModelSource],
) -> None:
    source = source_of("llama")
    packed, plain = (load_span(source, 0, source.num_blocks) for _ in range(2))
    pack_for_batches(nn.ModuleList(packed.layers), always)
    assert any(isinstance(module, PackedLinear) for layer in packed.layers for module in layer.modules())
    others = {name: torch.randn_like(weight) * 0.1 for name, weight in plain.weights().items()}
    hidden = torch.randn(8, 1, source.hidden_size)
    for span in (packed, plain):
        span.install(others)
    outputs = [span.forward(hidden, span.new_cache()) for span in (packed, plain)]
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-4)
