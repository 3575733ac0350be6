"""Error feedback keeps what codecs drop, changes nothing when it fails, and codecs are chosen by the link."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farflung.learn.codecs import second_moment_codec
from farflung.learn.feedback import ErrorFeedback, choose_codec
from farflung.learn.parameters import Tensors
from farflung.wire.tensor import CODECS, decode_tensor, encode_tensor, num_encoded_bytes

LOSSY = ("fp16", "bf16", "int8", "int4", "int2")


def deltas(seed: int, dtype: torch.dtype = torch.float32) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"weight": (13, 30), "bias": (7,), "scale": ()}
    return {name: (torch.randn(shape, generator=generator) * 1e-3).to(dtype) for name, shape in shapes.items()}


def test_shapes_and_dtypes_are_those_of_the_input() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for name, wire in ErrorFeedback().compress(deltas(0, dtype), "int4").items():
            back = decode_tensor(wire)
            assert back.shape == deltas(0)[name].shape and back.dtype == dtype


def test_a_saved_residual_continues_to_the_bit() -> None:
    straight, first = ErrorFeedback(0.9), ErrorFeedback(0.9)
    for seed in range(3):
        straight.compress(deltas(seed), "int2")
        first.compress(deltas(seed), "int2")
    saved = first.state()
    second = ErrorFeedback(0.9)
    second.load(saved)
    first.compress(deltas(3), "int2")
    for seed in (4, 5):
        wires = second.compress(deltas(seed), "int2")
        expected = straight.compress(deltas(seed), "int2")
        assert {name: bytes(wire.data) for name, wire in wires.items()} == {
            name: bytes(wire.data) for name, wire in expected.items()
        }


def test_a_state_is_a_copy() -> None:
    feedback = ErrorFeedback()
    feedback.compress(deltas(0), "int2")
    saved = feedback.state()
    before = {name: tensor.clone() for name, tensor in saved.items()}
    feedback.compress(deltas(1), "int2")
    feedback.load(saved)
    feedback.compress(deltas(2), "int2")
    assert all(torch.equal(saved[name], before[name]) for name in saved)


def test_an_exact_stream_takes_no_memory_and_sends_what_is_still_owed() -> None:
    feedback = ErrorFeedback()
    feedback.compress(deltas(0), "raw")
    assert feedback.state() == {}
    feedback.compress(deltas(0), "int2")
    owed = feedback.state()
    wires = feedback.compress(deltas(1), "raw")
    for name, tensor in deltas(1).items():
        assert torch.equal(decode_tensor(wires[name]), tensor + owed[name])
        assert not feedback.state()[name].any()


@pytest.mark.parametrize("codec", [*LOSSY, "raw"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_without_end_are_refused_and_leave_the_residuals_alone(codec: str, bad: float) -> None:
    feedback = ErrorFeedback()
    feedback.compress(deltas(0), "int2")
    before = feedback.state()
    broken = deltas(1)
    broken["bias"][3] = bad
    with pytest.raises(ValueError, match="infinite"):
        feedback.compress(broken, codec)
    assert all(torch.equal(before[name], tensor) for name, tensor in feedback.state().items())


def test_a_value_too_large_for_the_codec_is_no_infinite_debt() -> None:
    with pytest.raises(ValueError, match="bf16 cannot"):
        ErrorFeedback().compress({"weight": torch.tensor([3.4e38])}, "bf16")


def test_residuals_of_another_model_are_refused() -> None:
    feedback = ErrorFeedback()
    feedback.load({"bias": torch.zeros(8)})
    with pytest.raises(ValueError, match=r"residual of bias has shape \(8,\) and the tensor \(7,\)"):
        feedback.compress(deltas(0), "int4")


@pytest.mark.parametrize("decay", [-0.1, 1.1, math.nan])
def test_a_decay_that_cannot_be_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        ErrorFeedback(decay)


@given(st.floats(0, 1e12), st.integers(0, 1 << 40), st.floats(0, 1e4))
def test_the_chosen_codec_fits_and_no_more_exact_one_would(rate: float, num_bytes: int, seconds: float) -> None:
    codec, reason = choose_codec(rate, num_bytes, seconds)
    order = ("raw", "bf16", "int8", "int4", "int2")
    sizes = {name: num_encoded_bytes(name, num_bytes // 4) for name in order}
    assert all(sizes[name] > rate * seconds for name in order[: order.index(codec)])
    assert codec == "int2" or sizes[codec] <= rate * seconds
    assert "MB" in reason


@pytest.mark.parametrize(
    ("seconds", "codec"), [(10, "raw"), (5, "bf16"), (2.7, "int8"), (1.4, "int4"), (0.8, "int2"), (0.01, "int2")]
)
def test_a_link_of_a_hundred_megabits(seconds: float, codec: str) -> None:
    chosen, reason = choose_codec(12.5e6, 100_000_000, seconds)
    assert chosen == codec
    assert reason.startswith("even 7.03 MB") if seconds == 0.01 else reason.startswith(f"{codec} is ")


@pytest.mark.parametrize("numbers", [(-1.0, 1, 1.0), (1.0, -1, 1.0), (1.0, 1, math.nan)])
def test_no_codec_is_chosen_for_numbers_that_cannot_be(numbers: tuple[float, int, float]) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        choose_codec(*numbers)


def adam_step(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return first / (second.sqrt() + 1e-8)


@pytest.mark.parametrize(("codec", "bound"), [("raw", 0.0), ("bf16", 2**-8), ("int8", 0.02), ("int4", 0.15)])
def test_second_moments_keep_the_steps_of_adam(codec: str, bound: float) -> None:
    """Moments over six orders of magnitude within a row; the error is that of Adam's step, relative to its norm."""
    generator = torch.Generator().manual_seed(0)
    second = 10 ** (-14 + 6 * torch.rand(64, 96, generator=generator))
    first = torch.randn(64, 96, generator=generator) * second.sqrt()
    exact = adam_step(first, second)
    back = decode_tensor(encode_tensor(second, second_moment_codec(codec)))
    assert float((adam_step(first, back) - exact).norm() / exact.norm()) <= bound
    # The control: even levels of the same width, also of the root, do far worse.
    if codec in ("int8", "int4"):
        naive = decode_tensor(encode_tensor(second.sqrt(), codec)).square()
        assert float((adam_step(first, naive) - exact).norm() / exact.norm()) > 5 * bound
        assert int((naive == 0).sum()) > 0 == int((back == 0).sum())


def test_every_codec_of_second_moments_exists_and_an_unknown_one_is_named() -> None:
    for codec in ("raw", *LOSSY):
        assert second_moment_codec(codec) in CODECS
    with pytest.raises(ValueError, match="'zip'; choose from raw"):
        second_moment_codec("zip")


def test_feedback_changes_what_is_sent_once_something_is_owed() -> None:
    feedback, tensors = ErrorFeedback(), {"weight": deltas(2)["weight"]}
    plain = bytes(encode_tensor(tensors["weight"], "int2").data)
    assert bytes(feedback.compress(tensors, "int2")["weight"].data) == plain
    assert bytes(feedback.compress(tensors, "int2")["weight"].data) != plain
