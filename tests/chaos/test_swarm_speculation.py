"""Guessing ahead over servers that die: every token is the local model's own, and wrong guesses leave no trace."""

from contextlib import closing

import pytest

from farflung.model.drafts import DraftModel, PromptLookup
from farflung.model.generator import GeneratedToken, GenerationRequest, ModelGenerator, Speculation
from farflung.model.sample import Sampling
from farflung.sim.faults import Faults, nth
from tests.swarms import SimulatedSwarm, SmallModel, tokens

SERVERS = {"a1": (0, 2), "a2": (0, 2), "b1": (2, 4), "b2": (2, 4)}


def answer_of(generator: ModelGenerator, request: GenerationRequest) -> tuple[list[int], int]:
    """Its tokens, and how many of them had been guessed."""
    steps = [step for step in generator.stream(request) if isinstance(step, GeneratedToken)]
    return [step.scored.token for step in steps], sum(step.is_guessed for step in steps)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("drafter", ["lookup", "itself"])
@pytest.mark.parametrize("victim", [None, "a1", "b1"])
def test_guesses_are_checked_and_taken_back_over_a_chain_that_breaks(
    small: SmallModel, victim: str | None, drafter: str, temperature: float
) -> None:
    prompt = tokens(small, 1, 6)[0].tolist() * 2
    request = GenerationRequest(
        prompt=tuple(prompt), num_tokens_max=24, sampling=Sampling(temperature=temperature), seed=5
    )
    expected, _ = answer_of(ModelGenerator(small.whole), request)
    faults = Faults() if victim is None else Faults().crash(victim, when=nth("Step", 3, "delivered", target=victim))
    guesser = PromptLookup() if drafter == "lookup" else DraftModel(small.whole, small.source.config.vocab_size)
    with SimulatedSwarm(small, SERVERS, faults=faults) as swarm:
        now = swarm.world.clock.now
        generator = ModelGenerator(
            swarm.model,
            open_cache=lambda num_tokens: closing(swarm.model._blocks.open_cache(num_tokens)),
            speculation=Speculation(guesser, now),
        )
        said, num_guessed = answer_of(generator, request)
        assert victim is None or not swarm.simulation.is_alive(victim)
    assert said == expected
    if drafter == "itself":
        assert num_guessed > 16
