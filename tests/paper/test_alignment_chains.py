"""Sequential over chains of block servers is sampling and training in one place: equal tokens and weights, to the bit.

The chain is a swarm in a simulator of its own, which the rollout worker of the run's simulator drives from a thread.
"""

import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from farflung.apps.align.chain import Chain, load_stage, stage_blocks, stage_config
from farflung.apps.align.materials import adapter_config
from farflung.model.generator import ModelGenerator
from farflung.model.source import ModelSource
from farflung.sim.simulation import Simulation
from farflung.systems.alignment.colocated import install, sample
from farflung.systems.alignment.policy import SamplingPolicy
from farflung.systems.swarm.messages import ACTOR
from farflung.systems.swarm.server import Server
from farflung.systems.swarm.view import NoRoute
from farflung.world.address import PeerId
from farflung.world.doors import World
from farflung.world.host import Host
from tests.alignment_exactness import assert_same, in_one_place, sequential, whole, with_adapter
from tests.policies import END_TOKEN, Place, small_model

HEAD = "head"
ADAPTER_RANK = 4
pytestmark = pytest.mark.filterwarnings("ignore:.*fan_in_fan_out", "ignore:`is_gradient_checkpointing` is deprecated")


class Thread:
    """The thread that a chain's simulation lives in; a bridge to it."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
        self.simulation: Simulation

    def do(self, function: Callable[[], Any]) -> Any:
        """There."""
        return self._executor.submit(function).result()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """As `Bridge.run`."""
        return self.do(lambda: self.simulation.run(coroutine, node=HEAD))

    def call_soon(self, function: Callable[[], object]) -> None:
        """As `Bridge.call_soon`."""

        async def call() -> None:
            function()

        if threading.current_thread() is threading.main_thread():
            self.run(call())


@contextmanager
def chained(source: ModelSource, num_stages: int, adapter: Any) -> Iterator[tuple[SamplingPolicy, Thread]]:
    """A policy over so many block servers, and where these are."""
    thread, blocks = Thread(), stage_blocks(source.num_blocks, num_stages)
    peers = [PeerId(f"stage-{number}") for number in range(num_stages)]

    def found() -> Chain:
        thread.simulation = Simulation(seed=1)
        for peer, own in zip(peers, blocks, strict=True):

            def boot(world: World, own: Any = own) -> None:
                span = load_stage(source, own, torch.device("cpu"), adapter)
                Host(Server(stage_config(source, PeerId(HEAD)), span), world, ACTOR)

            thread.simulation.node(peer, boot=boot)
        world = thread.simulation.node(HEAD)
        return Chain.connect(source, world, thread, dict(zip(peers, blocks, strict=True)))

    chain = thread.do(found)
    generator = ModelGenerator(chain.model, open_cache=chain.open_cache)
    yield SamplingPolicy(generator, chain.assign, stop_tokens=[END_TOKEN], rows_at_once=1), thread
    thread.do(lambda: thread.simulation.__exit__(None, None, None))


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """The small model of these tests, on disk."""
    folder: Path = tmp_path_factory.mktemp("policy")
    small_model().save_pretrained(folder)
    return ModelSource.open(str(folder))


@pytest.mark.parametrize(
    ("prepare", "num_stages", "num_steps"),
    [
        (whole, 2, 4),
        (with_adapter, 2, 4),
        pytest.param(whole, 1, 20, marks=pytest.mark.slow),
        pytest.param(whole, 2, 20, marks=pytest.mark.slow),
        pytest.param(with_adapter, 1, 20, marks=pytest.mark.slow),
        pytest.param(with_adapter, 2, 20, marks=pytest.mark.slow),
    ],
)
def test_a_chain_samples_what_one_place_does(
    source: ModelSource, prepare: Callable[[Any], Any], num_stages: int, num_steps: int
) -> None:
    adapter = adapter_config(ADAPTER_RANK, ["attn.c_attn"]) if prepare is with_adapter else None
    with chained(source, num_stages, adapter) as (policy, _):
        assert_same(sequential(prepare, 1, num_steps, lambda: policy), in_one_place(prepare, num_steps))


def test_a_server_that_died_samples_nothing_until_it_has_the_weights_again(source: ModelSource) -> None:
    place = Place.make()
    learner, environment, config = place.learner, place.environment, place.config
    learner.step(place.groups())
    expected = place.groups(version=1)
    with chained(source, 2, None) as (policy, thread):
        install(policy, 1, learner.snapshot())
        thread.do(lambda: (thread.simulation.crash("stage-1"), thread.simulation.restart("stage-1")))
        with pytest.raises(NoRoute, match="other weights"):
            sample(policy, environment, range(1), config)
        policy.abandon(0)
        install(policy, 1, learner.snapshot())
        assert sample(policy, environment, range(config.prompts_per_step), config) == expected
