"""A trainer's gradients are those of the model's own loss; its runs can be cut anywhere, saved, and go on elsewhere."""

import math
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedConfig

from farflung.learn.checkpoint import load_checkpoint, save_checkpoint
from farflung.learn.loss import evaluate, next_token_loss
from farflung.learn.optimizer_config import OptimizerConfig, OptimizerName
from farflung.learn.parameters import copies, fingerprint, joined
from farflung.learn.schedule import Cosine
from farflung.learn.trainer import Trainer
from tests.learn.models import (
    VOCABULARY,
    Counting,
    end,
    gpt2_config,
    llama_config,
    model_of,
    moe_config,
    trainer_of,
)

ADAMW = OptimizerConfig(learning_rate=0.01)


def print_of(trainer: Trainer) -> bytes:
    return fingerprint(joined({"parameters": trainer.parameters, **trainer.optimizer.moments}))


@pytest.mark.parametrize(
    "config", [llama_config(), llama_config(tied=True), moe_config()], ids=["llama", "tied", "moe"]
)
def test_loss_is_transformers_own(config: PreTrainedConfig) -> None:
    model = model_of(config).train()
    batch = Counting().next_batch()
    ours = next_token_loss(model, batch)
    # Their loss shifts by itself: of the last input it makes no prediction.
    theirs = model(input_ids=batch[:, :-1], labels=batch[:, :-1], shift_labels=batch[:, 1:].contiguous()).loss
    torch.testing.assert_close(ours, theirs)


def test_experts_add_their_balancing_loss_in_training_only() -> None:
    model = model_of(moe_config()).train()
    batch = Counting().next_batch()
    assert next_token_loss(model, batch).item() > evaluate(model, [batch]) + 1e-4


def test_training_learns_to_count() -> None:
    trainer = trainer_of(llama_config(), OptimizerConfig(learning_rate=0.02), schedule=Cosine(), batch_size=8)
    held_out = [Counting(seed=1).next_batch() for _ in range(2)]
    assert trainer.evaluate(held_out) > math.log(VOCABULARY) - 0.2
    descended = trainer.run(100, lambda step: (step + 1) / 100)
    assert trainer.evaluate(held_out) < 0.5
    assert descended.num_steps == trainer.num_steps == 100 and descended.num_skipped == 0
    assert descended.num_tokens == trainer.num_tokens == 100 * 8 * 12
    assert 0 < descended.gradient_norm < 10 and 0.1 < descended.loss < math.log(VOCABULARY)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "muon", "adopt"])
def test_a_run_saved_in_a_file_and_loaded_elsewhere_goes_on_to_the_bit(name: OptimizerName, tmp_path: Path) -> None:
    def trainer() -> Trainer:
        config = OptimizerConfig(name=name, learning_rate=0.01)
        return trainer_of(gpt2_config(), config, schedule=Cosine(), num_micro_batches=2)

    straight = trainer()
    straight.run(10, lambda step: (step + 1) / 10)
    first = trainer()
    first.run(5, lambda step: (step + 1) / 10)
    path = save_checkpoint(tmp_path, *first.state())
    first.run(1, end)
    second = trainer()
    second.run(2, end)
    torch.manual_seed(5)  # dropout comes from the trainer's seed, not from here
    saved = load_checkpoint(path)
    second.load(saved.tensors, saved.state)
    second.run(5, lambda step: (step + 6) / 10)
    assert print_of(second) == print_of(straight)
    assert (second.num_steps, second.num_tokens) == (straight.num_steps, straight.num_tokens)
    assert second.stream.cursor == straight.stream.cursor


def test_micro_batches_of_a_step_count_as_one_batch() -> None:
    whole = trainer_of(llama_config(), ADAMW, batch_size=4)
    parts = trainer_of(llama_config(), ADAMW, batch_size=2, num_micro_batches=2)
    batch = whole.stream.next_batch()
    whole.stream = Fixed([batch])
    parts.stream = Fixed([batch[:2], batch[2:]])
    losses = whole.compute_gradients(), parts.compute_gradients()
    assert math.isclose(*losses, rel_tol=1e-6)
    for name, gradient in whole.gradients.items():
        torch.testing.assert_close(parts.gradients[name], gradient)
    assert whole.num_tokens == parts.num_tokens == 4 * 12


class Fixed(Counting):
    """A stream of given batches."""

    def __init__(self, batches: list[torch.Tensor]) -> None:
        super().__init__()
        self._batches = batches

    def next_batch(self) -> torch.Tensor:
        return self._batches.pop(0)


def test_run_is_gradients_and_steps() -> None:
    run, by_hand = (trainer_of(gpt2_config(), ADAMW, schedule=Cosine()) for _ in range(2))
    descended = run.run(4, lambda step: (step + 1) / 8)
    losses: list[float] = []
    for step in range(4):
        losses.append(by_hand.compute_gradients())
        by_hand.apply(by_hand.schedule((step + 1) / 8))
    assert print_of(run) == print_of(by_hand)
    assert math.isclose(descended.loss, sum(losses) / 4)


def test_experts_that_no_token_reached_have_gradients_too() -> None:
    trainer = trainer_of(moe_config(), ADAMW)
    trainer.compute_gradients()
    assert trainer.gradients.keys() == trainer.parameters.keys()


def test_the_schedule_reaches_the_steps() -> None:
    still = trainer_of(llama_config(), OptimizerConfig(weight_decay=0.0), schedule=Cosine(warmup=0.5, floor=0.0))
    before = fingerprint(still.parameters)
    still.run(1, lambda step: 0.0)
    assert fingerprint(still.parameters) == before
    still.run(1, lambda step: 0.25)
    assert fingerprint(still.parameters) != before


def test_dropout_depends_on_the_seed_alone_and_leaves_other_streams_alone() -> None:
    def gradients(seed: str, others: int) -> bytes:
        torch.manual_seed(others)
        before = torch.get_rng_state()
        trainer = trainer_of(gpt2_config(), ADAMW, seed=seed)
        trainer.compute_gradients()
        assert torch.equal(torch.get_rng_state(), before)
        return fingerprint(trainer.gradients)

    assert gradients("a", 1) == gradients("a", 2) != gradients("b", 1)


def test_micro_batches_have_dropout_of_their_own() -> None:
    once = trainer_of(gpt2_config(), ADAMW)
    twice = trainer_of(gpt2_config(), ADAMW, num_micro_batches=2)
    batch = once.stream.next_batch()
    once.stream, twice.stream = Fixed([batch]), Fixed([batch, batch])
    assert abs(once.compute_gradients() - twice.compute_gradients()) > 1e-4


def test_evaluation_is_without_dropout_and_weighs_by_tokens() -> None:
    trainer = trainer_of(gpt2_config(), ADAMW)
    long, short = Counting(4, 12).next_batch(), Counting(1, 3, seed=1).next_batch()
    each = trainer.evaluate([long]), trainer.evaluate([short])
    assert each == (trainer.evaluate([long]), trainer.evaluate([short]))
    assert math.isclose(trainer.evaluate([long, short]), (48 * each[0] + 3 * each[1]) / 51, rel_tol=1e-6)
    assert trainer.model.training
    with pytest.raises(ValueError, match="hold out"):
        trainer.evaluate([])


def test_steps_whose_gradient_is_not_finite_are_left_out_and_counted() -> None:
    trainer = trainer_of(llama_config(), ADAMW)
    weight = trainer.parameters["model.norm.weight"]
    handle = weight.register_hook(lambda gradient: gradient * (math.inf if trainer.num_steps == 1 else 1.0))
    descended = trainer.run(3, end)
    handle.remove()
    assert descended.num_skipped == 1 and descended.num_steps == 3 and trainer.optimizer.num_steps == 2
    assert math.isfinite(descended.loss) and math.isfinite(descended.gradient_norm)
    assert all(bool(tensor.isfinite().all()) for tensor in trainer.parameters.values())


def test_autocast_computes_in_bfloat16_and_keeps_parameters_in_float32() -> None:
    model = model_of(llama_config())
    exact = trainer_of(llama_config(), ADAMW)
    short = Trainer(model, trainer_of(llama_config(), ADAMW).optimizer, Counting(), Cosine(), autocast=torch.bfloat16)
    losses = exact.compute_gradients(), short.compute_gradients()
    assert losses[0] != losses[1] and math.isclose(*losses, rel_tol=0.01)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {torch.float32}


def test_a_state_of_another_model_is_refused_before_anything_is_overwritten() -> None:
    trainer = trainer_of(llama_config(), ADAMW)
    trainer.run(1, end)
    before = print_of(trainer), trainer.stream.cursor
    for wrong in (trainer_of(gpt2_config(), ADAMW), trainer_of(llama_config(tied=True), ADAMW)):
        with pytest.raises(ValueError, match="saved model does not fit"):
            trainer.load(*wrong.state())
    other = trainer_of(llama_config(), OptimizerConfig(name="sgd"))
    other.run(3, end)
    with pytest.raises(ValueError, match="optimizer"):
        trainer.load(*other.state())
    assert (print_of(trainer), trainer.stream.cursor) == before


def test_a_state_is_live_and_a_copy_is_not() -> None:
    trainer = trainer_of(llama_config(), ADAMW)
    state = trainer.state()
    kept = copies(state.tensors)
    trainer.run(1, end)
    assert fingerprint(state.tensors) == fingerprint(trainer.state().tensors) != fingerprint(kept)
    assert set(state.values) == {"optimizer", "cursor", "num_steps", "num_tokens"}
