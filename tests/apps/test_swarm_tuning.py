"""What a client trains through a swarm: the losses, gradients and steps of peft in one process, and files it loads."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from farflung.apps.finetune.accuracy import score
from farflung.apps.finetune.baselines.plan import Progress
from farflung.apps.finetune.labelled import TuningTask
from farflung.apps.finetune.rows import Rows
from farflung.apps.finetune.run_file import FINETUNE, FinetuneRun
from farflung.apps.finetune.swarm.materials import SwarmMaterials
from farflung.apps.finetune.swarm.model import OwnParameters, TunedModel
from farflung.apps.finetune.swarm.objectives import ClassLoss, PreferenceLoss, ScoreLoss
from farflung.apps.finetune.swarm.own import begin_own, size_of
from farflung.apps.finetune.swarm.rows import PairedRows, ScoredRows
from farflung.apps.finetune.swarm.saving import load_prompts, write_result
from farflung.apps.finetune.swarm.tuning import Steps, parts_of, tune
from farflung.apps.finetune.watch import read_kept, write_kept
from farflung.systems.onebyte.objective import LabelWordLoss, NextTokenLoss, Objective
from farflung.systems.swarm.config import SessionConfig
from tests.apps.tiny import save_tiny_model
from tests.swarms import SimulatedSwarm, SmallModel

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
"""peft asks for an attribute that transformers has given another name."""
SERVERS = {"a": (0, 2), "b": (2, 4)}
CONFIG = SessionConfig(micro_batch_tokens_max=40)
"""So few that every batch travels in several pieces."""
TEXTS = tuple(tuple(range(3 + n, 3 + n + length)) for n, length in enumerate((7, 4, 9, 5, 6, 8, 3, 9)))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    return SmallModel.open(save_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def swarm(small: SmallModel) -> Iterator[SimulatedSwarm]:
    with SimulatedSwarm(small, SERVERS, config=CONFIG) as swarm:
        yield swarm


def texts(num_given: int = 0) -> Rows:
    return Rows(TEXTS, (num_given,) * len(TEXTS), None, has_positions=False)


def prompts(answers: tuple[int, ...] = (0, 1) * 4) -> Rows:
    return Rows(TEXTS, tuple(len(row) for row in TEXTS), answers, has_positions=False)


def run_of(small: SmallModel, method: str = "prompt", **settings: Any) -> FinetuneRun:
    return FINETUNE.read(
        {
            "model": {"path": small.source.location},
            "data": {"train": "none.tsv"},
            "method": {"name": method, **settings},
            "training": {"rounds": 6, "batch_size": 4},
        }
    )


def materials_of(small: SmallModel, run: FinetuneRun, objective: Objective, rows: Rows) -> SwarmMaterials:
    return SwarmMaterials(run, small.source, None, TuningTask(objective, rows, None))  # pyright: ignore[reportArgumentType]


def tuned(swarm: SimulatedSwarm, run: FinetuneRun, objective: Objective, rows: Rows) -> TunedModel:
    return TunedModel(swarm.model, begin_own(run, swarm.small.source, TuningTask(objective, rows, None), swarm.model))


def peft_of(folder: Path, base: Any, **options: Any) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(base, folder, **options).eval()


def whole(small: SmallModel) -> Any:
    return AutoModelForCausalLM.from_pretrained(small.source.location)


OBJECTIVES = [
    (NextTokenLoss(), texts()),
    (NextTokenLoss(), texts(num_given=2)),
    (LabelWordLoss((5, 9)), prompts()),
    (ClassLoss(("x", "y")), prompts()),
    (ScoreLoss(), ScoredRows.of(prompts(), tuple(0.5 * n for n in range(8)))),
    (PreferenceLoss(), PairedRows.of(prompts(), TEXTS[::-1])),
]
names = [f"{type(objective).__name__}-{number}" for number, (objective, _) in enumerate(OBJECTIVES)]


@pytest.mark.parametrize("is_deep", [False, True], ids=["shallow", "deep"])
@pytest.mark.parametrize(("objective", "rows"), OBJECTIVES, ids=names)
def test_a_batch_gives_what_its_rows_give_alone(
    swarm: SimulatedSwarm, objective: Objective, rows: Rows, is_deep: bool
) -> None:
    """Whichever way it is padded, and however it is cut on its way; every own parameter gets a gradient."""
    run = run_of(swarm.small, num_tokens=3, is_deep=is_deep)
    model = tuned(swarm, run, objective, rows)
    if model.own.deep_LPH is not None:
        torch.nn.init.normal_(model.own.deep_LPH, std=0.1)
    together = objective(model, rows.batch(range(8)))
    alone = torch.cat([objective(model, rows.batch([number])) for number in range(8)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    together.mean().backward()
    assert all(one.grad is not None and one.grad.abs().max() > 0 for one in model.own.parameters())
    found = score(model, objective, rows, batch_size=3)
    assert found.loss == pytest.approx(float(together.detach().mean()), rel=1e-4)
    assert (found.accuracy is None) == isinstance(objective, ScoreLoss)


def test_an_adapter_has_as_many_values_as_were_said(small: SmallModel, swarm: SimulatedSwarm) -> None:
    for modules in (("all-linear",), ("q_proj", "down_proj")):
        run = run_of(small, "lora", rank=3, modules=modules)
        own = tuned(swarm, run, NextTokenLoss(), texts()).own
        task = TuningTask(NextTokenLoss(), texts(), None)
        assert sum(one.numel() for one in own.parameters()) == size_of(run, small.source, task)


def test_what_is_trained_is_what_was_said(small: SmallModel, swarm: SimulatedSwarm) -> None:
    kinds: list[dict[str, Any]] = [{"num_tokens": 3}, {"num_tokens": 5, "is_deep": True, "initial": "random"}]
    for objective, rows in OBJECTIVES:
        for settings in kinds:
            run = run_of(small, **settings)
            model = tuned(swarm, run, objective, rows)
            task = TuningTask(objective, rows, None)
            assert sum(one.numel() for one in model.own.parameters()) == size_of(run, small.source, task)
            again = begin_own(run, small.source, task, swarm.model)
            assert all(torch.equal(one, again.tensors()[name]) for name, one in model.own.tensors().items())
            other = begin_own(replace(run, run=replace(run.run, seed=1)), small.source, task, swarm.model)
            assert other.prompt_PH is not None and not torch.equal(other.prompt_PH, again.prompt_PH)  # pyright: ignore[reportArgumentType]
    assert not any(weight.requires_grad for weight in swarm.model.parameters())


def test_a_deep_prompt_begins_as_a_shallow_one(swarm: SimulatedSwarm) -> None:
    losses = [
        NextTokenLoss()(
            tuned(swarm, run_of(swarm.small, is_deep=is_deep), NextTokenLoss(), texts()), texts().batch([0])
        )
        for is_deep in (False, True)
    ]
    assert torch.equal(*losses)


def reference_losses(adapted: Any, objective: Objective, rows: Rows, run: FinetuneRun) -> list[float]:
    """The same steps as plain torch makes them, with the whole model in this process."""
    settings, rounds = run.swarm, run.training.rounds
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    losses: list[float] = []
    batches = TuningTask(objective, rows, None).batches(run.training.batch_size, "seed")
    for number in range(rounds):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * settings.schedule((number + 1) / rounds)
        loss = objective(adapted, batches(number)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, settings.clip_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


def steps_of(run: FinetuneRun, num_rounds: int | None = None) -> Steps:
    return Steps(num_rounds=num_rounds or run.training.rounds, batch_size=run.training.batch_size, seed="seed")


def peft_prompt(small: SmallModel, num_tokens: int, initial_PH: torch.Tensor) -> Any:
    from peft import PromptTuningConfig, get_peft_model

    adapted: Any = get_peft_model(
        whole(small), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=num_tokens)
    )
    adapted.prompt_encoder["default"].embedding.weight.data.copy_(initial_PH)
    return adapted.eval()


class WithoutPrompt(torch.nn.Module):
    """peft's model with logits at the text's places alone, as objectives of a causal model want them."""

    def __init__(self, adapted: Any, num_prompted: int) -> None:
        super().__init__()
        self.adapted = adapted
        self.num_prompted = num_prompted

    def forward(self, **inputs: Any) -> Any:
        outputs = self.adapted(**inputs)
        outputs.logits = outputs.logits[:, self.num_prompted :]
        return outputs


@pytest.mark.parametrize("accumulation", [1, 2])
def test_steps_are_those_of_peft_in_one_process(swarm: SimulatedSwarm, accumulation: int) -> None:
    run = run_of(swarm.small, num_tokens=3, weight_decay=0.1, gradient_accumulation=accumulation)
    rows = texts()
    model = tuned(swarm, run, NextTokenLoss(), rows)
    assert model.own.prompt_PH is not None
    reference = WithoutPrompt(peft_prompt(swarm.small, 3, model.own.prompt_PH.detach()), 3)
    heard: list[Progress] = []
    tune(model, TuningTask(NextTokenLoss(), rows, None), steps_of(run), run.swarm, heard.append)
    expected = reference_losses(reference, NextTokenLoss(), rows, run)
    assert [one.loss for one in heard] == pytest.approx(expected, abs=1e-4)
    assert expected[-1] < expected[0]
    theirs = reference.adapted.prompt_encoder["default"].embedding.weight
    torch.testing.assert_close(model.own.prompt_PH.detach(), theirs.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "settings"), [("prompt", {"num_tokens": 3, "is_deep": True}), ("lora", {"rank": 2})]
)
def test_a_run_that_is_resumed_is_one_that_was_not_stopped_to_the_bit(
    swarm: SimulatedSwarm, tmp_path: Path, method: str, settings: dict[str, Any]
) -> None:
    run = run_of(swarm.small, method, **settings)
    task = TuningTask(ClassLoss(("x", "y")), prompts(), None)

    def begun() -> TunedModel:
        return tuned(swarm, run, task.objective, task.train)

    class Enough(Exception):
        pass

    def stop_after_three(progress: Progress) -> None:
        if progress.round_number == 3:
            write_kept(tmp_path / "state", progress)
            raise Enough

    straight, stopped, resumed = begun(), begun(), begun()
    losses: list[float] = []
    tune(straight, task, steps_of(run), run.swarm, lambda progress: losses.append(progress.loss))
    with pytest.raises(Enough):
        tune(stopped, task, steps_of(run), run.swarm, stop_after_three)
    heard: list[Progress] = []
    tune(resumed, task, steps_of(run), run.swarm, heard.append, read_kept(tmp_path / "state"))
    assert [one.loss for one in heard] == losses[3:] and [one.round_number for one in heard] == [4, 5, 6]
    for name, tensor in straight.own.tensors().items():
        assert torch.equal(tensor, resumed.own.tensors()[name]), name


def test_peft_loads_a_prompt_and_says_the_same(swarm: SimulatedSwarm, tmp_path: Path) -> None:
    run = run_of(swarm.small, num_tokens=3)
    materials = materials_of(swarm.small, run, NextTokenLoss(), texts())
    model = tuned(swarm, run, NextTokenLoss(), texts())
    folder = write_result(tmp_path, run, materials, model.own)
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    batch = texts().batch([0, 2])
    ours = model(batch["input_ids"], batch["attention_mask"]).logits
    theirs = peft_of(folder, whole(swarm.small))(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    ).logits[:, 3:]
    is_text = batch["attention_mask"] == 1
    torch.testing.assert_close(ours[is_text], theirs[is_text], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("method", "settings"), [("prompt", {"num_tokens": 3}), ("lora", {"rank": 2})])
def test_peft_loads_a_head_and_says_the_same(
    swarm: SimulatedSwarm, tmp_path: Path, method: str, settings: dict[str, Any]
) -> None:
    run = run_of(swarm.small, method, **settings)
    objective = ClassLoss(("good", "bad", "so"))
    rows = prompts((0, 1, 2, 0, 1, 2, 0, 1))
    materials = materials_of(swarm.small, run, objective, rows)
    model = tuned(swarm, run, objective, rows)
    if model.own.lora is not None:
        for outer_OR in model.own.lora.outer:
            torch.nn.init.normal_(outer_OR)
    folder = write_result(tmp_path, run, materials, model.own)
    base = AutoModelForSequenceClassification.from_pretrained(swarm.small.source.location, num_labels=3)
    adapted = peft_of(folder, base)
    for number in range(3):  # transformers finds no padding behind a prompt: one row at a time
        batch = rows.batch([number])
        theirs = adapted(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        torch.testing.assert_close(model.read_last(batch), theirs, rtol=1e-4, atol=1e-4)
    assert json.loads((folder / "classes.json").read_text()) == ["good", "bad", "so"]


def test_deep_prompts_are_read_again(swarm: SimulatedSwarm, tmp_path: Path) -> None:
    run = run_of(swarm.small, num_tokens=3, is_deep=True)
    materials = materials_of(swarm.small, run, ScoreLoss(), ScoredRows.of(prompts(), (0.0,) * 8))
    own = tuned(swarm, run, ScoreLoss(), materials.task.train).own
    folder = write_result(tmp_path, run, materials, own)
    found = load_prompts(folder)
    assert found.tensors().keys() == own.tensors().keys()
    assert all(torch.equal(tensor, found.tensors()[name]) for name, tensor in own.tensors().items())
    write_result(tmp_path, run, materials, OwnParameters(prompt_PH=torch.zeros(3, 32), head_NH=torch.ones(1, 32)))
    assert load_prompts(folder).deep_LPH is None, "nothing of an earlier result is left"
    (folder / "adapter_model.safetensors").write_bytes(b"?")
    with pytest.raises(ValueError, match="holds no prompts of a finished run"):
        load_prompts(folder)


def test_parts_of_a_round() -> None:
    assert parts_of([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4, 5]]
    assert parts_of([1, 2], 3) == [[1], [2]]
