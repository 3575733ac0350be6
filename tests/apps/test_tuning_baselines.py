"""The baselines compute what their papers say, step by step, and learn."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from farflung.apps.finetune.accuracy import score
from farflung.apps.finetune.baselines import adam, fedavg_lora, mezo
from farflung.apps.finetune.baselines.plan import Plan, Progress
from farflung.apps.finetune.baselines.settings import AdamSettings, FedAvgLoraSettings, MezoSettings
from farflung.apps.finetune.labelled import TuningTask, read_task
from farflung.apps.finetune.rows import Rows
from farflung.apps.finetune.settings import DataSettings, ObjectiveSettings
from farflung.learn.parameters import copies
from tests.apps.tiny import save_tiny_model

TEXTS = [f"{word}{number}\t{label}\n" for number in range(12) for word, label in (("class Tree", 0), ("return len", 1))]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "train.tsv").write_text("".join(TEXTS))
    return save_tiny_model(folder, num_blocks=2)


@pytest.fixture
def model(model_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model_folder).eval()


@pytest.fixture
def task(model_folder: Path, model: Any) -> TuningTask:
    objective = ObjectiveSettings(template="{text}\n", label_words={"0": "b", "1": "a"})
    data = DataSettings(train=str(model_folder / "train.tsv"), text=0, label=1)
    return read_task(data, objective, AutoTokenizer.from_pretrained(model_folder), model)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return copies(dict(model.named_parameters()))


def plan(num_rounds: int, tensors: tuple[str, ...] = ("all",), seed: str = "seed") -> Plan:
    return Plan(num_rounds=num_rounds, batch_size=8, seed=seed, tensors=tensors)


def loss_of(model: Any, task: TuningTask) -> float:
    return score(model, task.objective, task.train).loss


@torch.no_grad()
def test_a_step_of_mezo_is_that_along_a_materialised_direction(model: Any, task: TuningTask) -> None:
    settings = MezoSettings(learning_rate=1e-3, epsilon=1e-3, num_directions=2)
    base = weights(model)
    batch = task.batches(8, "seed")(0)
    expected = copies(base)
    for direction in range(2):
        generator = torch.Generator().manual_seed(plan(1).number(f"0:{direction}"))
        z = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
        sides: list[float] = []
        for sign in (1, -1):
            for name, parameter in model.named_parameters():
                parameter.copy_(base[name] + sign * settings.epsilon * z[name])
            sides.append(float(task.objective(model, batch).mean()))
        projection = (sides[0] - sides[1]) / (2 * settings.epsilon)
        assert abs(projection) > 0.05, "a slope that rounding does not decide"
        for name in expected:
            expected[name] -= settings.learning_rate / 2 * projection * z[name]
    for name, parameter in model.named_parameters():
        parameter.copy_(base[name])
    mezo.tune(model, task, plan(1), settings, lambda _: None)
    for name, parameter in model.named_parameters():
        moved = expected[name] - base[name]
        assert float((parameter - expected[name]).norm()) < 0.01 * float(moved.norm()), name


def test_mezo_tunes_only_what_is_chosen_and_repeats_itself(model_folder: Path, task: TuningTask) -> None:
    tuned: list[dict[str, torch.Tensor]] = []
    heard: list[Progress] = []
    for seed in ("one", "one", "two"):
        model = AutoModelForCausalLM.from_pretrained(model_folder)
        base = weights(model)
        settings = MezoSettings(learning_rate=1e-3)
        assert mezo.tune(model, task, plan(3, ("attention",), seed), settings, heard.append) is model
        tuned.append(weights(model))
        assert all(("attn" in name) != torch.equal(base[name], tensor) for name, tensor in tuned[-1].items())
    assert all(torch.equal(tensor, tuned[1][name]) for name, tensor in tuned[0].items())
    assert any(not torch.equal(tensor, tuned[2][name]) for name, tensor in tuned[0].items())
    assert [each.num_forwards for each in heard[:3]] == [2, 4, 6]
    assert {(each.num_backwards, each.num_bytes) for each in heard} == {(0, 0)}


def test_mezo_learns_and_its_rate_falls_if_asked(model: Any, task: TuningTask) -> None:
    before = loss_of(model, task)
    falling = Plan(num_rounds=40, batch_size=8, seed="seed", decay="linear")
    assert [falling.rate_share(number) for number in (0, 20, 39)] == [1.0, 0.5, pytest.approx(1 / 40)]
    mezo.tune(model, task, falling, MezoSettings(learning_rate=1e-4, num_directions=2), lambda _: None)
    assert loss_of(model, task) < before - 0.05


def test_adam_is_that_of_torch_on_the_gradient_of_the_batch(model: Any, task: TuningTask, model_folder: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.1)
    heard: list[Progress] = []
    settings = AdamSettings(learning_rate=1e-3, beta2=0.98, weight_decay=0.1, clip_norm=0.5)
    adam.tune(model, task, plan(3), settings, heard.append)
    batches = task.batches(8, "seed")
    for number in range(3):
        loss = task.objective(reference, batches(number)).mean()
        assert heard[number].loss == pytest.approx(loss.item(), abs=1e-5)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        optimizer.step()
    for name, parameter in reference.named_parameters():
        assert torch.allclose(parameter, model.get_parameter(name), atol=1e-6), name
    assert (heard[-1].num_forwards, heard[-1].num_backwards, heard[-1].num_bytes) == (3, 3, 0)


def test_adam_learns_what_is_chosen_and_refuses_rewards(model: Any, task: TuningTask) -> None:
    base = weights(model)
    before = loss_of(model, task)
    adam.tune(model, task, plan(20, ("norm",)), AdamSettings(learning_rate=3e-3), lambda _: None)
    assert loss_of(model, task) < before - 0.05
    changed = {name for name, tensor in weights(model).items() if not torch.equal(tensor, base[name])}
    assert changed == {name for name in base if "norm" in name}
    constant = TuningTask(lambda model, batch: torch.zeros(len(batch["answers"])), task.train, None)
    with pytest.raises(ValueError, match="a reward has no gradient"):
        adam.tune(model, constant, plan(1), AdamSettings(), lambda _: None)


def test_the_server_takes_the_mean_by_rows() -> None:
    adapters = [safetensors.torch.save({"a": torch.full((2, 3), value), "b": torch.ones(1)}) for value in (1.0, 5.0)]
    mean = safetensors.torch.load(fedavg_lora.average(adapters, [3, 1]))
    assert mean["a"].tolist() == [[2.0] * 3] * 2 and mean["b"].tolist() == [1.0]


def test_a_round_is_the_mean_of_what_each_client_makes_alone(model_folder: Path, task: TuningTask) -> None:
    """And every adapter that is sent is counted, both ways."""
    settings = FedAvgLoraSettings(num_clients=3, local_steps=2, rank=2, learning_rate=1e-2)
    uneven = task.train.share(0, 1)
    data = TuningTask(
        task.objective, Rows(uneven.tokens[:23], uneven.num_given[:23], (uneven.answers or ())[:23], False), None
    )
    heard: list[Progress] = []

    def fresh() -> Any:
        return AutoModelForCausalLM.from_pretrained(model_folder)

    together = fedavg_lora.tune(fresh(), data, plan(1, ("attention",)), settings, heard.append)
    states: list[dict[str, torch.Tensor]] = []
    for client in range(3):
        adapted = fedavg_lora._adapted(fresh(), plan(1, ("attention",)), settings).eval()
        fedavg_lora._local_steps(
            adapted, data, fedavg_lora.own_batches(data, plan(1), settings)[client], plan(1), settings, 0
        )
        states.append(safetensors.torch.load(fedavg_lora.adapter_bytes(adapted)))
    found = safetensors.torch.load(fedavg_lora.adapter_bytes(together))
    sizes = [8, 8, 7]
    assert any(not torch.allclose(states[0][name], states[1][name]) for name in found)
    for name, tensor in found.items():
        mean = torch.stack([size / 23 * state[name] for size, state in zip(sizes, states, strict=True)]).sum(0)
        assert torch.allclose(tensor, mean, atol=1e-6), name
    assert heard[0].num_bytes == 3 * 2 * len(fedavg_lora.adapter_bytes(together))
    assert (heard[0].num_forwards, heard[0].num_backwards) == (6, 6)


def test_an_adapter_learns_and_plain_peft_loads_it(model_folder: Path, task: TuningTask, tmp_path: Path) -> None:
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(model_folder)
    before = loss_of(base, task)
    settings = FedAvgLoraSettings(num_clients=2, local_steps=4, rank=4, learning_rate=1e-2)
    tuned = fedavg_lora.tune(base, task, plan(5, ("all",)), settings, lambda _: None)
    after = loss_of(tuned, task)
    assert after < before - 0.05
    tuned.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's own
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), tmp_path)
    assert loss_of(loaded, task) == pytest.approx(after, abs=1e-5)


def test_matrices_that_are_stored_the_other_way_round_are_adapted_too(model: Any, task: TuningTask) -> None:
    config = GPT2Config(vocab_size=model.config.vocab_size, n_embd=32, n_layer=1, n_head=2, bos_token_id=None)
    settings = FedAvgLoraSettings(num_clients=2, local_steps=1, rank=2)
    tuned = fedavg_lora.tune(GPT2LMHeadModel(config), task, plan(1), settings, lambda _: None)
    found = safetensors.torch.load(fedavg_lora.adapter_bytes(tuned))
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert len(found) == 2 * len(layers) and all(any(layer in name for name in found) for layer in layers)


def test_what_cannot_be_is_said_in_a_sentence(model: Any, task: TuningTask) -> None:
    with pytest.raises(ValueError, match="24 examples are too few for 25 clients"):
        fedavg_lora.tune(model, task, plan(1), FedAvgLoraSettings(num_clients=25), lambda _: None)
    with pytest.raises(ValueError, match="no matrix of a layer"):
        fedavg_lora.tune(model, task, plan(1, ("norm",)), FedAvgLoraSettings(), lambda _: None)
    with pytest.raises(ValueError, match="at least 1"):
        FedAvgLoraSettings(rank=0)
    with pytest.raises(ValueError, match="above 0"):
        MezoSettings(epsilon=0.0)
    with pytest.raises(ValueError, match="below 1"):
        AdamSettings(beta2=1.0)
