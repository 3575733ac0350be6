"""Stateless requests to the block server: forward and backward are the span's own, and refusals say why."""

from typing import Any

import pytest
import torch

from farflung.model.span import Span
from farflung.systems.swarm.messages import Backward, BackwardDone, Forward, ForwardDone, Output, RequestRefused
from farflung.wire.tensor import decode_tensor, encode_tensor
from tests.systems.swarm.steps import MODEL, Bench, hidden, server, step


@pytest.fixture
def bench(span: Span) -> Bench:
    return Bench(server(span))


def request(kind: type[Any], **fields: Any) -> Any:
    known = {"request": "r", "model": MODEL, "first": 1, "last": 3, "hidden": encode_tensor(hidden(2, 3))}
    return kind(**{**known, **fields})


def test_forward_and_backward_are_those_of_the_span(bench: Bench, span: Span) -> None:
    inputs = hidden(2, 3).requires_grad_()
    output = span.forward_train(inputs, first=1, last=3)
    gradient = hidden(2, 3, seed=5)
    output.backward(gradient)
    bench.receive(request(Forward))
    bench.receive(request(Backward, gradient=encode_tensor(gradient)))
    (done,) = bench.compute()
    assert isinstance(done, ForwardDone) and torch.equal(decode_tensor(done.hidden), output.detach())
    (done,) = bench.compute()
    assert isinstance(done, BackwardDone) and inputs.grad is not None
    torch.testing.assert_close(decode_tensor(done.gradient), inputs.grad)
    assert bench.role.num_sessions == 0


def test_a_request_for_blocks_that_are_elsewhere_is_refused(bench: Bench) -> None:
    for fields in ({"first": 2, "last": 5}, {"model": "another"}):
        (refused,) = bench.receive(request(Forward, **fields))
        assert refused.reason == "this server holds blocks 0:4 of small" and not refused.is_fault_of_client


def test_a_failing_request_is_refused_and_the_queue_goes_on(bench: Bench) -> None:
    bench.receive(request(Forward))
    bench.receive(step(0, 1))
    (refused,) = bench.compute(error=RuntimeError("no luck"))
    assert isinstance(refused, RequestRefused) and refused.reason == "the computation failed: no luck"
    assert isinstance(bench.compute()[0], Output)
