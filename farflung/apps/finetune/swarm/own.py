"""How what the client trains begins: drawn from the run's seed, and its size before anything is loaded."""

from typing import Any

import torch

from farflung.apps.finetune.labelled import TuningTask
from farflung.apps.finetune.run_file import FinetuneRun
from farflung.apps.finetune.swarm.model import OwnParameters
from farflung.apps.finetune.swarm.settings import LoraSettings, PromptSettings
from farflung.model.adapters import BlockLayers, LoraAdapter
from farflung.model.source import ModelSource

RANDOM_SIZE = 0.02
"""Standard deviation of what begins at random, as of most models' own embeddings and heads."""


def begin_own(run: FinetuneRun, source: ModelSource, task: TuningTask, ends: Any) -> OwnParameters:
    """As the run's method has them; the same whenever it is asked for.

    Raises:
        ValueError: method.modules names no layer of the model.
    """
    generator = torch.Generator().manual_seed(run.run.seed)
    method = run.swarm
    prompt = deep = lora = head = None
    if isinstance(method, PromptSettings):
        prompt = _prompt(method, ends, generator)
        if method.is_deep:
            # At first nothing is added, so that a deep prompt begins as a shallow one.
            deep = torch.zeros(source.num_blocks, method.num_tokens, source.hidden_size)
    if isinstance(method, LoraSettings):
        lora = LoraAdapter.new(
            source,
            rank=method.rank,
            alpha=method.alpha,
            targets=method.targets,
            is_rank_stabilized=method.is_rank_stabilized,
            generator=generator,
        )
    num_values = num_head_values(task)
    if num_values:
        head = RANDOM_SIZE * torch.randn(num_values, source.hidden_size, generator=generator)
    return OwnParameters(prompt_PH=prompt, deep_LPH=deep, lora=lora, head_NH=head)


def _prompt(method: PromptSettings, ends: Any, generator: torch.Generator) -> torch.Tensor:
    embeddings = ends.get_input_embeddings().weight.detach().float().cpu()
    if method.initial == "vocabulary":
        words = torch.randint(len(embeddings), (method.num_tokens,), generator=generator)
        return embeddings[words]
    return RANDOM_SIZE * torch.randn(method.num_tokens, embeddings.shape[1], generator=generator)


def num_prompted_of(run: FinetuneRun) -> int:
    """Positions before every text."""
    return run.swarm.num_tokens if isinstance(run.swarm, PromptSettings) else 0


def num_head_values(task: TuningTask) -> int:
    """That a head of the objective reads; 0: the objective has none."""
    return getattr(task.objective, "num_values", 0)


def size_of(run: FinetuneRun, source: ModelSource, task: TuningTask) -> int:
    """Values that are trained.

    Raises:
        ValueError: as `begin_own`.
    """
    width, method = source.hidden_size, run.swarm
    num_values = num_head_values(task) * width
    if isinstance(method, PromptSettings):
        num_values += method.num_tokens * width * (1 + source.num_blocks * method.is_deep)
    if isinstance(method, LoraSettings):
        layers = BlockLayers.of(source)
        num_values += method.rank * sum(
            sum(layers.sizes[block][name]) for block, name in layers.matching(method.targets)
        )
    return num_values
