"""Error feedback conserves: sent and residual are input and old residual; without it two bits lose for good."""

from collections.abc import Callable

import pytest
import torch

from farflung.learn.feedback import ErrorFeedback
from farflung.learn.rules import Nesterov
from farflung.wire.levels import _even, _fit_mean_square
from farflung.wire.tensor import decode_tensor, encode_tensor

CODECS = ("fp16", "bf16", "int8", "int4", "int2")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def inputs(seed: int) -> torch.Tensor:
    return torch.randn(50, 33, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_sent_and_residual_are_input_and_old_residual(codec: str, decay: float) -> None:
    feedback, old = ErrorFeedback(decay), torch.zeros(50, 33)
    for step in range(20):
        tensor = inputs(step)
        sent = decode_tensor(feedback.compress({"weight": tensor}, codec)["weight"])
        residual = feedback.state()["weight"]
        # In double precision: what is left is the rounding of two additions in float32.
        owed = tensor.double() + decay * old.double()
        assert float((sent.double() + residual.double() - owed).abs().max()) < 4e-6
        # The control: the codec was called and is not exact, so that the equality says something.
        assert sent.ne(tensor + decay * old).any() and float(residual.norm()) > 0
        old = residual


@pytest.mark.parametrize("codec", CODECS)
def test_all_that_was_sent_is_all_that_went_in_but_the_last_residual(codec: str) -> None:
    feedback = ErrorFeedback()
    total_in, total_sent = torch.zeros(50, 33, dtype=torch.float64), torch.zeros(50, 33, dtype=torch.float64)
    for step in range(50):
        total_in += inputs(step)
        total_sent += decode_tensor(feedback.compress({"weight": inputs(step)}, codec)["weight"])
    missing = total_in - total_sent
    torch.testing.assert_close(missing, feedback.state()["weight"].double(), atol=1e-4, rtol=0)
    assert float(missing.norm()) > 0


@pytest.mark.parametrize("codec", ["int4", "int2"])
def test_the_mean_of_a_constant_converges_with_feedback_only(codec: str) -> None:
    constant, feedback = inputs(0), ErrorFeedback()
    without = decode_tensor(encode_tensor(constant, codec))
    errors: dict[int, float] = {}
    total = torch.zeros_like(constant)
    for step in range(1, 401):
        total += decode_tensor(feedback.compress({"weight": constant}, codec)["weight"])
        errors[step] = float((total / step - constant).norm() / constant.norm())
    # The residual stays bounded, so that the error of the mean falls as 1 / steps.
    assert errors[400] < errors[40] / 5 and errors[400] < 0.005
    # Without feedback every message has the same error, and so has their mean.
    assert float((without - constant).norm() / constant.norm()) > 10 * errors[400]
    assert errors[1] == pytest.approx(float((without - constant).norm() / constant.norm()))


def test_residuals_stay_bounded_over_many_messages_of_the_worst_kind() -> None:
    """One value in a block that is not whole is what two bits code worst, with .95 of its norm as error."""
    tensor = torch.zeros(63)
    tensor[5] = 1.0
    feedback = ErrorFeedback()
    norms: list[float] = []
    for _ in range(300):
        feedback.compress({"weight": tensor}, "int2")
        norms.append(float(feedback.state()["weight"].norm()))
    assert max(norms[150:]) <= max(norms[:150]) * 1.01
    # With contraction q the residual is at most q / (1 - q) inputs.
    assert max(norms) <= 0.96 / 0.04 * float(tensor.norm())


def descend(carry: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """What outer Nesterov steps leave of the error of a quadratic with curvatures 1, 1/2, 1/3 ... in random order.

    Workers send what eight steps of theirs change; `carry` gives what arrives.
    """
    generator = torch.Generator().manual_seed(0)
    curvatures = 1 / torch.arange(1, 4097)[torch.randperm(4096, generator=generator)]
    reached = 1 - (1 - 0.5 * curvatures) ** 8
    start = torch.randn(4096, generator=generator)
    parameters, rule = {"weight": start.clone()}, Nesterov(learning_rate=0.7, momentum=0.9)
    state = rule.init(parameters)
    for _ in range(200):
        rule.update(parameters, {"weight": carry(reached * parameters["weight"])}, state)
    return float((reached * parameters["weight"].square()).sum() / (reached * start.square()).sum())


def with_feedback(code: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The equations of error feedback, written out, for a codec that is none of ours."""
    residual = torch.zeros(4096)

    def carry(delta: torch.Tensor) -> torch.Tensor:
        nonlocal residual
        sent = code(delta + residual)
        residual = delta + residual - sent
        return sent

    return carry


def test_outer_momentum_bears_the_feedback_of_two_bits() -> None:
    feedback = ErrorFeedback()
    exact = descend(lambda delta: delta)
    ours = descend(lambda delta: decode_tensor(feedback.compress({"weight": delta}, "int2")["weight"]))
    assert ours == pytest.approx(exact, rel=0.05)
    # The control: what two bits lose without feedback, and why blocks are rotated. Where they are not, small values
    # beside large ones arrive many messages late, and momentum turns the delay into growing swings.
    assert descend(lambda delta: decode_tensor(encode_tensor(delta, "int2"))) > 2 * exact
    plain = _even(2, 1.5, torch.bfloat16, _fit_mean_square)
    assert descend(with_feedback(lambda delta: plain.decode(plain.encode(delta), 4096, torch.float32))) > 1e3 * exact
