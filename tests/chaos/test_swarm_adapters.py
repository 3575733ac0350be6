"""Sessions under adapters over servers that die: every token is that of peft on one machine, guessed ahead or not."""

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from farflung.model.drafts import DraftModel, PromptLookup
from farflung.model.generator import GeneratedToken, GenerationRequest, ModelGenerator, Speculation
from farflung.model.peft_files import save_adapter
from farflung.model.sample import Sampling
from farflung.sim.faults import Faults, nth
from farflung.systems.swarm.adapters import NamedAdapter
from tests.loras import lora, under_peft
from tests.swarms import SimulatedSwarm, SmallModel, tokens

SERVERS = {"a1": (0, 2), "a2": (0, 2), "b1": (2, 4), "b2": (2, 4)}
NUM_TOKENS = 20


def request_of(small: SmallModel, temperature: float = 0.0) -> GenerationRequest:
    prompt = tokens(small, 1, 6)[0].tolist() * 2
    return GenerationRequest(
        prompt=tuple(prompt), num_tokens_max=NUM_TOKENS, sampling=Sampling(temperature=temperature), seed=5
    )


def said_by(generator: ModelGenerator, request: GenerationRequest) -> list[int]:
    return [step.scored.token for step in generator.stream(request) if isinstance(step, GeneratedToken)]


@pytest.fixture(scope="module")
def adapter(small: SmallModel) -> NamedAdapter:
    return NamedAdapter.of(lora(small.source).requires_grad_(False))


@pytest.fixture(scope="module")
def adapted(small: SmallModel, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same model and adapter on one machine."""
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(lora(small.source), Path(folder))
    return under_peft(small.whole, folder)


def generator_over(
    swarm: SimulatedSwarm, adapter: NamedAdapter | None, speculation: Speculation | None = None
) -> ModelGenerator:
    def open_cache(num_tokens: int) -> Any:
        return closing(swarm.model._blocks.open_cache(num_tokens, adapter=adapter))

    return ModelGenerator(swarm.model, open_cache=open_cache, speculation=speculation)


MOMENTS = {
    "a step": partial(nth, "Step", 6, "delivered"),
    "the first step": partial(nth, "Step", 1, "delivered"),
    "an output": partial(nth, "Output", 4, "sent"),
    "the adapter": partial(nth, "HandAdapter", 1, "deliver"),
    "the answer to it": partial(nth, "AdapterHanded", 1, "sent"),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("victim", ["a1", "b1"])
def test_a_server_that_dies_takes_no_token_with_it(
    small: SmallModel, adapter: NamedAdapter, adapted: Any, victim: str, moment: str
) -> None:
    is_its_own = moment in ("an output", "the answer to it")
    event = MOMENTS[moment](source=victim) if is_its_own else MOMENTS[moment](target=victim)
    expected = said_by(ModelGenerator(adapted), request_of(small))
    with SimulatedSwarm(small, SERVERS, faults=Faults().crash(victim, when=event)) as swarm:
        assert said_by(generator_over(swarm, adapter), request_of(small)) == expected
        assert not swarm.simulation.is_alive(victim)
    assert expected != said_by(ModelGenerator(small.whole), request_of(small))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("drafter", ["lookup", "the model without adapter"])
@pytest.mark.parametrize("victim", [None, "b1"])
def test_guesses_are_checked_under_the_adapter(
    small: SmallModel, adapter: NamedAdapter, adapted: Any, victim: str | None, drafter: str, temperature: float
) -> None:
    request = request_of(small, temperature)
    faults = Faults() if victim is None else Faults().crash(victim, when=nth("Step", 3, "delivered", target=victim))
    guesser = PromptLookup() if drafter == "lookup" else DraftModel(small.whole, small.source.config.vocab_size)
    with SimulatedSwarm(small, SERVERS, faults=faults) as swarm:
        speculation = Speculation(guesser, swarm.world.clock.now)
        said = said_by(generator_over(swarm, adapter, speculation), request)
        assert victim is None or not swarm.simulation.is_alive(victim)
    assert said == said_by(ModelGenerator(adapted), request)


def test_one_swarm_speaks_under_many_adapters_and_none(small: SmallModel, adapter: NamedAdapter, adapted: Any) -> None:
    """Prefixes and all: the prompt is the same, and each session follows the others."""
    plain, request = said_by(ModelGenerator(small.whole), request_of(small)), request_of(small)
    with SimulatedSwarm(small, {"a": (0, 2), "b": (2, 4)}) as swarm:
        for each, expected in ((None, plain), (adapter, said_by(ModelGenerator(adapted), request)), (None, plain)):
            assert said_by(generator_over(swarm, each), request) == expected


def test_a_server_without_room_for_the_adapter_is_replaced(
    small: SmallModel, adapter: NamedAdapter, adapted: Any
) -> None:
    with SimulatedSwarm(small, SERVERS) as swarm:
        for name in ("a1", "b1"):
            swarm.roles[name]._adapters._num_bytes_max = 1000
        assert said_by(generator_over(swarm, adapter), request_of(small)) == said_by(
            ModelGenerator(adapted), request_of(small)
        )
