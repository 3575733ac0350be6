"""The swarm's claims as equalities: through any chain of servers, a model says what it says on one machine.

Every family runs through 1, 2 and 3 servers of a simulated swarm, driven by transformers' own `generate`.
"""

from typing import Any

import pytest
import torch

from farflung.systems.swarm.config import SessionConfig
from tests.families import FAMILIES
from tests.swarms import SimulatedSwarm, SmallModel, tokens

GENERATION = {"max_new_tokens": 64, "min_new_tokens": 64, "pad_token_id": 0}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    torch.set_num_threads(1)
    return SmallModel.make(request.param, tmp_path_factory.mktemp("families"))


def servers(num_blocks: int, num_servers: int) -> dict[str, tuple[int, int]]:
    edges = [round(number * num_blocks / num_servers) for number in range(num_servers + 1)]
    return {f"server-{number}": (edges[number], edges[number + 1]) for number in range(num_servers)}


@pytest.mark.parametrize("num_servers", [1, 2, 3])
def test_a_chain_says_what_one_machine_says(family: SmallModel, num_servers: int) -> None:
    prompt = tokens(family, 1, 9)
    with SimulatedSwarm(family, servers(family.num_blocks, num_servers)) as swarm:
        through_swarm = swarm.model.generate(prompt, do_sample=False, **GENERATION)
        assert torch.equal(through_swarm, family.whole.generate(prompt, do_sample=False, **GENERATION))
        assert len(set(through_swarm[0].tolist())) > 5, "a text of one repeated token would prove little"
        for options in ({"do_sample": True, "temperature": 0.8, "top_k": 40}, {"num_beams": 4, "do_sample": False}):
            assert torch.equal(seeded(swarm.model, prompt, options), seeded(family.whole, prompt, options)), options


def test_hidden_states_are_those_of_one_machine(family: SmallModel) -> None:
    prompt = tokens(family, 2, 17)
    with SimulatedSwarm(family, servers(family.num_blocks, 2)) as swarm, torch.inference_mode():
        through_swarm = swarm.model(prompt, output_hidden_states=True)
        whole = family.whole(prompt, output_hidden_states=True)
        assert len(through_swarm.hidden_states) == len(whole.hidden_states) == family.num_blocks + 1
        for ours, theirs in zip(through_swarm.hidden_states, whole.hidden_states, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(through_swarm.logits, whole.logits, atol=1e-4, rtol=1e-5)


def test_a_padded_batch_equals_its_rows(family: SmallModel) -> None:
    long, short = tokens(family, 1, 12, seed=1), tokens(family, 1, 7, seed=2)
    batch = torch.cat([long, torch.nn.functional.pad(short, (5, 0))])
    mask = torch.ones_like(batch)
    mask[1, :5] = 0
    with SimulatedSwarm(family, servers(family.num_blocks, 2)) as swarm:
        together = swarm.model.generate(batch, attention_mask=mask, do_sample=False, **GENERATION)
        for row, prompt in ((0, long), (1, short)):
            alone = swarm.model.generate(prompt, do_sample=False, **GENERATION)
            assert torch.equal(together[row, -64:], alone[0, -64:])


def test_gradients_and_deep_prompts_are_those_of_one_machine(family: SmallModel) -> None:
    prompt = tokens(family, 1, 9)
    embeddings = family.whole.get_input_embeddings()(prompt).detach()
    with SimulatedSwarm(family, servers(family.num_blocks, 3)) as swarm:
        ours = gradient(swarm.model, embeddings)
        torch.testing.assert_close(ours, gradient(family.whole, embeddings), rtol=1e-4, atol=1e-4)
        prompts = torch.zeros(family.num_blocks, 3, family.source.hidden_size).uniform_(-1, 1).requires_grad_()
        plain = swarm.model(prompt).logits.detach()
        swarm.model.set_deep_prompts(prompts)
        prompted = swarm.model(prompt).logits
        prompted.sum().backward()
        assert not torch.allclose(plain, prompted)
        assert prompts.grad is not None and prompts.grad.abs().amax(dim=(1, 2)).min() > 0
        with torch.no_grad():
            swarm.model.set_deep_prompts(prompts.detach())
            cache = swarm.model._blocks.open_cache(64)
            cached = swarm.model(prompt, past_key_values=cache, use_cache=True).logits
        torch.testing.assert_close(cached, prompted, rtol=1e-4, atol=1e-4)


def test_a_generation_leaves_no_session_behind(small: SmallModel) -> None:
    prompt = tokens(small, 1, 9)
    with SimulatedSwarm(small, servers(small.num_blocks, 2)) as swarm:
        swarm.model.generate(prompt, do_sample=False, **GENERATION)
        swarm.simulation.advance(1.0)
        assert [role.num_sessions for role in swarm.roles.values()] == [0, 0]
        with swarm.model.inference_session(num_tokens_max=200) as cache:
            text = swarm.model.generate(prompt, do_sample=False, max_new_tokens=8, pad_token_id=0)
            assert cache.get_seq_length() == text.shape[1] - 1
            text = swarm.model.generate(text, do_sample=False, max_new_tokens=8, pad_token_id=0)
            assert [role.num_sessions for role in swarm.roles.values()] == [1, 1]
        assert torch.equal(text, small.whole.generate(prompt, do_sample=False, max_new_tokens=16, pad_token_id=0))
        swarm.simulation.advance(1.0)
        assert [role.num_sessions for role in swarm.roles.values()] == [0, 0]


def test_an_assistant_drafts_for_the_swarm(small: SmallModel) -> None:
    prompt = tokens(small, 1, 9)
    with SimulatedSwarm(small, servers(small.num_blocks, 2)) as swarm:
        drafted = swarm.model.generate(prompt, do_sample=False, assistant_model=small.whole, max_new_tokens=24)
        assert torch.equal(drafted, small.whole.generate(prompt, do_sample=False, max_new_tokens=24))


def gradient(model: Any, embeddings: torch.Tensor) -> torch.Tensor:
    inputs = embeddings.clone().requires_grad_()
    model(inputs_embeds=inputs).logits.float().logsumexp(-1).sum().backward()
    assert inputs.grad is not None and inputs.grad.abs().max() > 0
    return inputs.grad


def seeded(model: Any, prompt: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    torch.manual_seed(11)
    return model.generate(prompt, **options, **GENERATION)


def test_micro_batches_change_nothing(small: SmallModel) -> None:
    """Rows travel apart and at the same time; the gradient is that of the whole batch."""
    batch = tokens(small, 5, 9)
    mask = torch.ones_like(batch)
    mask[2, :4] = 0
    embeddings = small.whole.get_input_embeddings()(batch).detach()

    def run(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = embeddings.clone().requires_grad_()
        logits = model(inputs_embeds=inputs, attention_mask=mask).logits
        logits.logsumexp(-1).sum().backward()
        assert inputs.grad is not None
        return logits.detach(), inputs.grad

    config = SessionConfig(micro_batch_tokens_max=20)
    with SimulatedSwarm(small, servers(small.num_blocks, 2), config=config) as swarm:
        ours, whole = run(swarm.model), run(small.whole)
        sent = sum("Forward" in event.detail for event in swarm.simulation.trace.of("send", "client"))
    assert sent == 2 * 3, "three micro-batches through two servers"
    for one, other in zip(ours, whole, strict=True):
        torch.testing.assert_close(one[mask == 1], other[mask == 1], rtol=1e-4, atol=1e-4)
