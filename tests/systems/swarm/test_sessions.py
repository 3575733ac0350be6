"""A server's tokens: whatever opens, grows, moves and closes, in any order, what is promised is what sessions hold."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from farflung.model.span import Span
from farflung.systems.swarm.messages import CloseSession, Hop, Output, SessionRefused
from farflung.systems.swarm.sessions import SessionTable
from farflung.wire.message import NoSuchActor
from farflung.wire.tensor import encode_tensor
from farflung.world.address import Address, PeerId
from tests.systems.swarm.steps import SERVER, Bench, hidden, server, step

NUM_TOKENS = 100
NAMES = st.sampled_from(["one", "two", "three"])
PEERS = st.sampled_from(["client-1", "client-2"])
RANGES = st.sampled_from([(0, 4), (0, 1), (1, 3)])


def machine(span: Span) -> type[RuleBasedStateMachine]:
    class Tokens(RuleBasedStateMachine):
        """Messages in any order to a server with little cache; every computation may end well or badly, or late."""

        def __init__(self) -> None:
            super().__init__()
            self.bench = Bench(server(span, cache_tokens_max=NUM_TOKENS, num_jobs_max=2))
            self.numbers: dict[tuple[str, int, int], int] = {}

        @rule(name=NAMES, blocks=RANGES, peer=PEERS, num_tokens=st.integers(-1, 70), is_fresh=st.booleans())
        def step(self, name: str, blocks: tuple[int, int], peer: str, num_tokens: int, is_fresh: bool) -> None:
            key = (name, *blocks)
            number = self.numbers.get(key, 0)
            base = 0 if is_fresh else number
            client = Address(PeerId(peer), f"session-{name}")
            message = step(
                base, number + 1, session=name, route=(Hop(SERVER, *blocks),), client=client, num_tokens_max=num_tokens
            )
            answers = self.bench.receive(message, source=client)
            if not any(isinstance(answer, SessionRefused) for answer in answers):
                self.numbers[key] = number + 1

        @precondition(lambda self: self.bench.running)
        @rule(fails=st.booleans())
        def compute(self, fails: bool) -> None:
            self.bench.compute(error=RuntimeError("out of luck") if fails else None)

        @rule(name=NAMES, peer=PEERS)
        def close(self, name: str, peer: str) -> None:
            self.bench.receive(CloseSession(session=name), source=Address(PeerId(peer), f"session-{name}"))

        @rule(name=NAMES, peer=PEERS)
        def client_is_done(self, name: str, peer: str) -> None:
            source = Address(PeerId(peer), f"session-{name}")
            self.bench.receive(NoSuchActor(actor=source.actor), source=source)

        @rule(peer=PEERS, seconds=st.sampled_from([1.0, 11.0, 2000.0]))
        def client_is_lost(self, peer: str, seconds: float) -> None:
            self.bench.take(self.bench.role.lost(PeerId(peer), "gone", self.bench.now))
            self.bench.now += seconds
            self.bench.take(self.bench.role.wake(self.bench.now))

        @invariant()
        def promised_is_what_sessions_hold(self) -> None:
            held = sum(
                session.num_tokens_reserved * (session.key[2] - session.key[1]) for session in self.bench.role._sessions
            )
            assert self.bench.num_tokens_left == max(0, NUM_TOKENS - -(-held // 4))
            assert len(self.bench.running) <= 1

        def teardown(self) -> None:
            for name in ("one", "two", "three"):
                for peer in ("client-1", "client-2"):
                    self.close(name, peer)
            assert self.bench.num_tokens_left == NUM_TOKENS

    return Tokens


def test_tokens_never_leak(span: Span) -> None:
    case = machine(span).TestCase
    case.settings = settings(max_examples=60, stateful_step_count=30)
    case().runTest()


def test_a_token_counts_by_the_blocks_it_is_on() -> None:
    table = SessionTable(num_tokens_max=10, num_blocks=4)
    assert table.fits(40, 1) and not table.fits(41, 1)
    assert table.fits(10, 4) and not table.fits(11, 4)


@pytest.mark.parametrize("num_positions", [1, 5])
def test_a_session_is_freed_with_all_its_parts(span: Span, num_positions: int) -> None:
    bench = Bench(server(span))
    for blocks in ((0, 1), (1, 3), (3, 4)):
        message = step(0, 1, route=(Hop(SERVER, *blocks),), hidden=encode_tensor(hidden(1, num_positions)))
        assert isinstance(bench.apply(message)[0], Output)
    assert bench.role.num_sessions == 1 and bench.num_tokens_left == 1000 - 64
    bench.receive(CloseSession(session="one"))
    assert bench.num_tokens_left == 1000
