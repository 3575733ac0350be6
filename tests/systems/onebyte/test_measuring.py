"""Measuring: every family's perturbed forward is the materialised one, weights stay as they are, misuse is refused."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from farflung.systems.onebyte.directions import draw_directions
from farflung.systems.onebyte.header import Header
from farflung.systems.onebyte.measure import Measurer, epsilon_warning
from farflung.systems.onebyte.objective import Batch, NextTokenLoss, RewardLoss, label_words
from farflung.systems.onebyte.tensors import choose_tensors, chosen_parameters
from tests.families import FAMILIES, VOCABULARY
from tests.onebyte_journals import bare_header, header_for, tiny_model

EPSILON = 0.02


def model_of(family: str) -> PreTrainedModel:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()
    for parameter in model.parameters():  # norms and biases that are not 1 and 0 show more
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 1.0, 0.2)
    return model


def batch_of(num_sequences: int = 3, length: int = 7) -> Batch:
    tokens = torch.randint(2, VOCABULARY, (num_sequences, length), generator=torch.Generator().manual_seed(1))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def materialised(model: nn.Module, header: Header, batch: Batch, slot: int, sign: int) -> torch.Tensor:
    """The objective of each sequence with the direction really added to the weights, which are restored."""
    parameters = chosen_parameters(model, header.tensors)
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with torch.no_grad():
        for tensor in header.tensors:
            direction = draw_directions(header, tensor, 0, slot, 1).entries(tensor.shape)[0]
            parameters[tensor.name].add_(direction, alpha=sign * header.epsilon)
        values = NextTokenLoss()(model, batch)
        for name, parameter in parameters.items():
            parameter.copy_(kept[name])
    return values


def patterns_of(family: str) -> list[str]:
    """All tensors, but for fused experts, which are refused (see below)."""
    return ["all", "-*.experts.*"] if family == "qwen3-moe" else ["all"]


@pytest.mark.parametrize(
    ("family", "direction"),
    [*((family, "rank1") for family in sorted(FAMILIES)), ("llama-tied", "gaussian"), ("gpt2", "rademacher")],
)
def test_perturbed_forward_is_the_materialised_one(family: str, direction: str) -> None:
    model, batch = model_of(family), batch_of()
    header = bare_header(*choose_tensors(model, patterns_of(family)), direction=direction, epsilon=EPSILON)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = Measurer(header, model, NextTokenLoss(), num_directions=2).differences(batch, 0, range(1, 4))
    for row, slot in enumerate(range(1, 4)):
        expected = materialised(model, header, batch, slot, 1) - materialised(model, header, batch, slot, -1)
        assert expected.abs().max() > 1e-3, "the direction must matter"
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} was changed"


def test_one_long_step_is_seen_to_1e_5() -> None:
    """The correction itself, not the difference of two losses: logits of both ways side by side."""
    model, batch = tiny_model(), batch_of()
    tokens = {"input_ids": batch["input_ids"] % 97}
    header = header_for(model, epsilon=EPSILON)
    logits: list[torch.Tensor] = []

    def kept(model: nn.Module, batch: Batch) -> torch.Tensor:
        logits.append(model(**batch, use_cache=False).logits)
        return torch.zeros(len(batch["input_ids"]))

    Measurer(header, model, kept, num_directions=2).differences(tokens, 0, range(2))
    rows = logits[0].view(4, 3, *logits[0].shape[1:])
    parameters = chosen_parameters(model, header.tensors)
    with torch.no_grad():
        plain = model(**tokens).logits
        for tensor in header.tensors:
            parameters[tensor.name].add_(
                draw_directions(header, tensor, 0, 1, 1).entries(tensor.shape)[0], alpha=header.epsilon
            )
        materialised_rows = model(**tokens).logits
    assert (rows[2] - plain).abs().max() > 1e-2
    torch.testing.assert_close(rows[2], materialised_rows, rtol=1e-5, atol=1e-5)


def test_exact_projections_are_what_measurements_estimate() -> None:
    for family in ("gpt2", "qwen3"):
        model, batch = model_of(family), batch_of()
        header = bare_header(*choose_tensors(model, patterns_of(family)), epsilon=1e-4)
        measurer = Measurer(header, model.double(), NextTokenLoss(), num_directions=4)
        measured = torch.tensor(measurer.measure(batch, 0, range(6)))
        exact = torch.tensor(measurer.project_gradient(batch, 0, range(6)))
        torch.testing.assert_close(measured, exact, rtol=0.05, atol=0.05 * float(exact.abs().max()))
        assert not any(parameter.grad is not None for parameter in model.parameters())


def test_fused_experts_are_refused_by_forward_passes_and_taken_by_gradients() -> None:
    model, batch = model_of("qwen3-moe"), batch_of()
    header = bare_header(*choose_tensors(model, ["all"]))
    measurer = Measurer(header, model, NextTokenLoss(), num_directions=2)
    with pytest.raises(ValueError, match=r"experts.* cannot be measured .*leave it out with the pattern -"):
        measurer.measure(batch, 0, range(2))
    assert len(measurer.project_gradient(batch, 0, range(2))) == 2
    with torch.no_grad():
        model(**batch)  # the refusal has left nothing behind
    assert all(isinstance(parameter, nn.Parameter) for parameter in model.parameters())


def test_a_tensor_that_nothing_reads_is_refused() -> None:
    model = tiny_model()
    model.register_parameter("idle", nn.Parameter(torch.ones(3)))
    measurer = Measurer(bare_header(*choose_tensors(model, ["all"])), model, NextTokenLoss())
    with pytest.raises(ValueError, match="idle is not used when the model computes"):
        measurer.measure({"input_ids": torch.ones(1, 4, dtype=torch.int64)}, 0, range(2))


def test_padding_and_label_words() -> None:
    model = tiny_model()
    objective = label_words(lambda word: [ord(word[0]) - 60] if len(word) == 1 else [1, 2], ["a", "b"])
    tokens = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 5, 6, 7]])
    batch = {"input_ids": tokens, "attention_mask": (tokens > 0).long(), "answers": torch.tensor([0, 1])}
    values = objective(model, batch)
    alone = objective(model, {"input_ids": tokens[:1, 2:], "answers": torch.tensor([0])})
    torch.testing.assert_close(values[:1], alone, rtol=1e-4, atol=1e-4)
    assert objective.judge(model, batch).num_right in (0, 1, 2)
    header = header_for(model, epsilon=1e-3)
    found = Measurer(header, model, objective, num_directions=3).measure(batch, 0, range(3))
    exact = Measurer(header, model, objective).project_gradient(batch, 0, range(3))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(exact), rtol=0.03, atol=0.03)
    with pytest.raises(ValueError, match="'word' is 2 tokens"):
        label_words(lambda word: [1] if len(word) == 1 else [1, 2], ["a", "word"])
    with pytest.raises(ValueError, match="different"):
        label_words(lambda word: [1], ["a", "b"])


def test_labels_that_are_ignored_do_not_count() -> None:
    model, tokens = tiny_model(), batch_of()["input_ids"] % 97
    labels = tokens.clone()
    labels[:, :4] = -100
    everything = NextTokenLoss()(model, {"input_ids": tokens})
    answers = NextTokenLoss()(model, {"input_ids": tokens, "labels": labels})
    log_shares = model(tokens).logits.log_softmax(-1)[:, 3:-1].gather(2, tokens[:, 4:, None])[..., 0]
    torch.testing.assert_close(answers, -log_shares.mean(1))
    assert not torch.allclose(everything, answers)


def test_a_reward_is_measured_through_what_each_replica_writes() -> None:
    model = tiny_model()
    tokens = batch_of()["input_ids"] % 97
    heard: list[tuple[int, ...]] = []

    def reward(prompts: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
        heard.append(tuple(answers.shape))
        assert torch.equal(prompts[:3], tokens)
        return (answers % 7 == 0).float().sum(1)

    header = header_for(model, epsilon=0.05)
    measurer = Measurer(header, model, RewardLoss(reward, num_tokens=4), num_directions=4)
    differences = measurer.differences({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, 0, range(4))
    assert heard == [(24, 4)] and differences.shape == (4, 3)
    assert differences.abs().sum() > 0 and torch.equal(differences, differences.round())


def test_epsilon_that_drowns_in_rounding_is_told() -> None:
    model, batch = tiny_model(), {"input_ids": batch_of()["input_ids"] % 97}
    coarse = tiny_model().bfloat16()
    header = header_for(model, epsilon=1e-4)
    fine_rate = Measurer(header, model, NextTokenLoss(), num_directions=64).sign_flip_rate(batch, 0, range(64))
    coarse_rate = Measurer(header, coarse, NextTokenLoss(), num_directions=64).sign_flip_rate(batch, 0, range(64))
    assert fine_rate < 0.1 < coarse_rate
    assert epsilon_warning(fine_rate, 1e-4, torch.float32) is None
    warning = epsilon_warning(coarse_rate, 1e-4, torch.bfloat16)
    assert warning is not None and "too small for bfloat16" in warning and f"{coarse_rate:.0%}" in warning


def test_patterns_choose_tensors() -> None:
    model = tiny_model()
    names = [name for name, _ in model.named_parameters()]

    def chosen(*patterns: str) -> list[str]:
        return [tensor.name for tensor in choose_tensors(model, patterns)]

    assert chosen("all") == names and "lm_head.weight" not in names, "the tied head is its embedding"
    assert all("self_attn" in name for name in chosen("attention")) and len(chosen("attention")) == 8
    assert len(chosen("mlp")) == 6 and len(chosen("norm")) == 5 and len(chosen("linear")) == 14
    assert chosen("embedding") == ["model.embed_tokens.weight"]
    assert chosen("all", "-norm", "-embedding") == chosen("linear")
    assert chosen("*.q_proj.weight") == [name for name in names if name.endswith("q_proj.weight")]
    with pytest.raises(ValueError, match=r"'\*.q_porj.weight' matches no tensor"):
        choose_tensors(model, ["*.q_porj.weight"])
    with pytest.raises(ValueError, match="did you mean 'attention'"):
        choose_tensors(model, ["atention"])
    with pytest.raises(ValueError, match="leave no tensor"):
        choose_tensors(model, ["norm", "-all"])
    with pytest.raises(ValueError, match="say which tensors"):
        choose_tensors(model, [])
    with pytest.raises(ValueError, match="this model has no weight of shape"):
        chosen_parameters(model, bare_header(*choose_tensors(nn.Linear(2, 2), ["weight"])).tensors)
