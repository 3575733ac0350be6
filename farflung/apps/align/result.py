"""The policy that an alignment run has made: how good it is, and the folder that others load."""

from pathlib import Path

from farflung.apps.align.materials import Materials
from farflung.apps.runs.result import write_model
from farflung.learn.checkpoint import load_checkpoint, save_checkpoint
from farflung.learn.parameters import Tensors, assign_, copies, named_parameters
from farflung.systems.alignment.colocated import Evaluation, evaluate, install, sample

ADAPTER_FOLDER = "adapter"
NUM_SAMPLES = 3


def save_result(folder: Path, tensors: Tensors) -> None:
    """Where a seat leaves the run's policy for the lead."""
    save_checkpoint(folder, tensors, {}, num_kept=1)


def load_result(folder: Path) -> Tensors:
    """What a seat has left.

    Raises:
        ValueError: nothing, or something damaged.
    """
    return load_checkpoint(folder).tensors


def evaluation(materials: Materials, tensors: Tensors, *, version: int) -> tuple[Evaluation, list[str]]:
    """How these weights do on prompts after those of the run, and some of their answers in words."""
    training, config = materials.run.training, materials.run.conversation
    policy, environment = materials.policy(), materials.environment()
    install(policy, version, copies(tensors))
    prompts = materials.evaluation_prompts()
    found = evaluate(policy, environment, prompts, config, version=version, passing_reward=training.passing_reward)
    decode = materials.tokenizer.decode
    words = [
        f"{decode(list(group.rollouts[0].prompt_tokens))!r} -> {decode(list(group.rollouts[0].answer_tokens))!r}, "
        f"worth {group.rewards[0]:g}"
        for group in sample(policy, environment, prompts[:NUM_SAMPLES], config)
    ]
    return found, words


def write_policy(folder: Path, materials: Materials, tensors: Tensors) -> Path:
    """Write the model whole, and an adapter also by itself as peft writes it; where the model lies.

    Raises:
        ValueError: the disk does not take them.
    """
    model = materials.model()
    assign_(named_parameters(model), tensors)
    if materials.run.model.adapter_rank:
        model.save_pretrained(folder / ADAPTER_FOLDER)
        model = model.merge_and_unload()
    return write_model(folder, model, materials.tokenizer)
