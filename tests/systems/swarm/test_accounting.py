"""What a server's device was used for is counted by kind, told, and refused where it cannot be."""

from collections.abc import Callable

import msgspec
import pytest

from farflung.model.span import Span
from farflung.systems.swarm.accounting import Spent, Work
from farflung.systems.swarm.info import ServerInfo
from farflung.systems.swarm.messages import Backward, Forward
from farflung.wire.tensor import encode_tensor
from farflung.world.address import PeerId
from farflung.world.errors import PeerMisbehaved
from tests.systems.swarm.steps import MODEL, Bench, hidden, server, step


def long_step(num_positions: int, name: str, **fields: object) -> object:
    return step(0, 1, hidden=encode_tensor(hidden(1, num_positions)), session=name, **fields)


def request(kind: Callable[..., object], **fields: object) -> object:
    return kind(request="r", model=MODEL, first=1, last=3, hidden=encode_tensor(hidden(2, 3)), **fields)


def test_sessions_tuning_and_standbys_are_counted_apart(span: Span) -> None:
    bench = Bench(server(span))
    messages = [
        (2.0, request(Forward)),
        (4.0, request(Backward, gradient=encode_tensor(hidden(2, 3)))),
        (1.0, long_step(5, "a session")),
        (3.0, long_step(7, "a standby", is_background=True)),
    ]
    for seconds, message in messages:
        bench.receive(message)
        bench.now += seconds
        bench.compute()
    work = bench.role.info({}).work
    assert work == Work(serving=Spent(1.0, 5), tuning=Spent(6.0, 12), standing_by=Spent(3.0, 7))
    assert str(work) == "serving 10%, tuning 60%, standing by 30%"


def test_a_computation_that_fails_has_cost_its_time(span: Span) -> None:
    bench = Bench(server(span))
    bench.receive(request(Forward))
    bench.now += 2.0
    bench.compute(error=RuntimeError("no luck"))
    assert bench.role.info({}).work.tuning == Spent(2.0, 6)


def test_work_of_several_servers_adds_up() -> None:
    one, two = Work(serving=Spent(1.0, 4)), Work(serving=Spent(1.0, 1), tuning=Spent(2.0, 8))
    assert sum((one, two), Work()) == Work(serving=Spent(2.0, 5), tuning=Spent(2.0, 8))
    assert str(Work()) == ""


@pytest.mark.parametrize("spent", [Spent(-1.0, 0), Spent(float("nan"), 0), Spent(float("inf"), 0), Spent(0.0, -1)])
def test_impossible_work_is_refused(span: Span, spent: Spent) -> None:
    told = msgspec.msgpack.decode(server(span).info({}).to_bytes())
    told["work"]["tuning"] = msgspec.to_builtins(spent)
    with pytest.raises(PeerMisbehaved, match="impossible amount of work"):
        ServerInfo.from_bytes(msgspec.msgpack.encode(told), PeerId("liar"))
