"""FedAvg (arXiv 1602.05629, algorithm 1) over LoRA adapters (arXiv 2106.09685): the mean of clients' adapters.

All clients are computed here, one after another. Adapters pass between them and the server as the bytes that would be
sent, and those are counted, both ways.
"""

import importlib.util
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import safetensors.torch
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from farflung.apps.finetune.baselines.adam import descend, optimizer_of
from farflung.apps.finetune.baselines.plan import Kept, Plan, Progress, Tell
from farflung.apps.finetune.baselines.settings import FedAvgLoraSettings
from farflung.apps.finetune.labelled import TuningTask
from farflung.apps.finetune.rows import Batches
from farflung.learn.parameters import Tensors
from farflung.systems.onebyte.tensors import choose_tensors


def tune(
    model: Any, task: TuningTask, plan: Plan, settings: FedAvgLoraSettings, tell: Tell, kept: Kept | None = None
) -> Any:
    """The model with a tuned adapter, for `save_pretrained`; every client has an equal share of the training rows.
    `kept`: where it goes on.

    Raises:
        ValueError: peft is not installed, there are fewer rows than clients, or no matrix of a layer is to be tuned.
    """
    check(model, task, plan, settings)
    adapted = _adapted(model.eval(), plan, settings).eval()
    batches = own_batches(task, plan, settings)
    if kept is not None:
        load_adapter(adapted, safetensors.torch.save(kept.state))
    common = adapter_bytes(adapted)
    num_bytes = kept.num_bytes if kept else 0
    for number in range(kept.round_number if kept else 0, plan.num_rounds):
        sent: list[bytes] = []
        losses: list[float] = []
        for own in batches:
            load_adapter(adapted, common)
            losses += _local_steps(adapted, task, own, plan, settings, number)
            sent.append(adapter_bytes(adapted))
            num_bytes += len(common) + len(sent[-1])
        common = average(sent, [len(own.rows) for own in batches])
        load_adapter(adapted, common)
        num_steps = (number + 1) * settings.num_clients * settings.local_steps
        tell(
            Progress(
                round_number=number + 1,
                num_rounds=plan.num_rounds,
                loss=sum(losses) / len(losses),
                num_forwards=num_steps,
                num_backwards=num_steps,
                num_bytes=num_bytes,
                model=adapted,
                state=partial(safetensors.torch.load, common),
            )
        )
    return adapted


def check(model: Any, task: TuningTask, plan: Plan, settings: FedAvgLoraSettings) -> None:
    """Whether it can be done at all.

    Raises:
        ValueError: as `tune`.
    """
    if len(task.train) < settings.num_clients:
        raise ValueError(
            f"{len(task.train)} examples are too few for {settings.num_clients} clients: give more, or fewer clients"
        )
    if importlib.util.find_spec("peft") is None:
        raise ValueError("method fedavg-lora needs peft, which is not installed: pip install 'farflung[peft]'")
    _target_modules(model, plan)


def own_batches(task: TuningTask, plan: Plan, settings: FedAvgLoraSettings) -> list[Batches]:
    """Each client's, over its own share of the rows."""
    return [
        Batches(task.train.share(number, settings.num_clients), plan.batch_size, f"{plan.seed}:{number}")
        for number in range(settings.num_clients)
    ]


def _local_steps(
    adapted: Any, task: TuningTask, batches: Batches, plan: Plan, settings: FedAvgLoraSettings, round_number: int
) -> list[float]:
    """A client's part of a round; the loss before each step."""
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = optimizer_of(trained, settings.optimizer)
    losses: list[float] = []
    for number in range(round_number * settings.local_steps, (round_number + 1) * settings.local_steps):
        batch = {name: tensor.to(adapted.device) for name, tensor in batches(number).items()}
        share = plan.rate_share(round_number)
        losses.append(descend(adapted, task.objective, batch, optimizer, settings.optimizer, share))
    return losses


def average(adapters: Sequence[bytes], num_rows: Sequence[int]) -> bytes:
    """The mean of serialised adapters, each weighted by the rows that it was trained on."""
    shares = [count / sum(num_rows) for count in num_rows]
    mean: Tensors = {}
    for adapter, share in zip(adapters, shares, strict=True):
        for name, tensor in safetensors.torch.load(adapter).items():
            mean[name] = mean[name] + share * tensor.double() if name in mean else share * tensor.double()
    return safetensors.torch.save({name: tensor.float() for name, tensor in mean.items()})


def adapter_bytes(adapted: Any) -> bytes:
    """The adapter as it is sent, float32."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return safetensors.torch.save({name: tensor.float().contiguous() for name, tensor in state.items()})


def load_adapter(adapted: Any, content: bytes) -> None:
    """Give the model an adapter that was sent."""
    from peft import set_peft_model_state_dict

    result = set_peft_model_state_dict(adapted, safetensors.torch.load(content))
    assert not result.unexpected_keys, "an adapter of another model"


def _adapted(model: Any, plan: Plan, settings: FedAvgLoraSettings) -> Any:
    from peft import LoraConfig, get_peft_model

    modules = _target_modules(model, plan)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=modules,
        # Matrices of Conv1D, as in GPT-2, are stored the other way round.
        fan_in_fan_out=isinstance(model.get_submodule(modules[0]), Conv1D),
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        # peft asks for an attribute that transformers has given another name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        torch.manual_seed(plan.number("adapter"))
        return get_peft_model(model, config)


def _target_modules(model: Any, plan: Plan) -> list[str]:
    """The layers whose matrices are to be tuned; embeddings and the output layer keep theirs."""
    chosen = [tensor.name for tensor in choose_tensors(model, plan.tensors)]
    names = [name.removesuffix(".weight") for name in chosen if name.endswith(".weight")]
    output = model.get_output_embeddings()
    modules = [
        name
        for name in names
        if isinstance(module := model.get_submodule(name), nn.Linear | Conv1D) and module is not output
    ]
    if not modules:
        raise ValueError(
            f"{', '.join(plan.tensors)}: these tensors have no matrix of a layer, which is what LoRA adapts: choose "
            f"attention or linear"
        )
    return modules
