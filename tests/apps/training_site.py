"""One rank of one site of a training run: `python -m tests.apps.training_site SETTINGS.json` (see `Settings`)."""

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import farflung
from farflung.world.errors import FarflungError

NUM_INPUTS, NUM_HIDDEN, BATCH_SIZE = 6, 7, 8


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a site does."""

    folder: str
    """Where the ticket and results lie, for all sites."""
    number: int
    """Of the site; site 0 founds the swarm."""
    policy: str
    policy_settings: dict[str, Any] = field(default_factory=dict[str, Any])
    optimizer: str = "adamw"
    num_steps: int = 12
    seed: int = 0
    """Of the model's initial values."""
    num_ranks: int = 1
    wrapper: str = ""
    """ddp, fsdp or none."""
    num_hidden: int = NUM_HIDDEN
    wait_seconds_max: float = 240.0
    step_seconds: float = 0.0
    num_leave_after: int | None = None
    """Steps after which it dies without a word."""
    save_to: str | None = None
    """Folder for a checkpoint at the end."""
    load_from: str | None = None
    """Folder of the checkpoint to begin with."""


def make_model(seed: int, num_hidden: int = NUM_HIDDEN) -> nn.Module:
    """Two layers, uneven in every dimension."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(NUM_INPUTS, num_hidden), nn.Tanh(), nn.Linear(num_hidden, 3))


def make_optimizer(name: str, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    """One of torch's."""
    match name:
        case "sgd":
            return torch.optim.SGD(parameters, lr=0.1)
        case "momentum":
            return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
        case _:
            return torch.optim.AdamW(parameters, lr=0.02, betas=(0.9, 0.95))


def batch_of(number: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What site `number` sees at a step: inputs [8, 6] and targets [8, 3], which one function gives everywhere."""
    generator = torch.Generator().manual_seed(1000 * number + step)
    inputs = torch.randn(BATCH_SIZE, NUM_INPUTS, generator=generator)
    return inputs, torch.stack([inputs.sum(1).sin(), inputs[:, 0] * inputs[:, 1], inputs[:, 2].relu()], dim=1)


def loss_of(model: nn.Module, number: int, step: int) -> torch.Tensor:
    """Mean squared error on a site's batch."""
    inputs, targets = batch_of(number, step)
    return nn.functional.mse_loss(model(inputs), targets)


def train(settings: Settings, rank: int) -> dict[str, Any]:
    """Train in the run and return what there is to compare."""
    model = make_model(settings.seed, settings.num_hidden)
    if settings.wrapper == "fsdp":
        fully_shard(model)
    elif settings.wrapper == "ddp":
        model = DistributedDataParallel(model)
    optimizer = make_optimizer(settings.optimizer, model.parameters())
    policy = getattr(farflung, settings.policy)(**settings.policy_settings)
    ticket_file = Path(settings.folder) / "ticket"
    if settings.number == 0:
        swarm: dict[str, Any] = {"new_swarm": "lab", "on_ticket": lambda ticket: _publish(ticket, ticket_file)}
    else:
        swarm = {"swarm": _wait_for(ticket_file)}
    communication = farflung.LowCommunication(
        model, optimizer, policy=policy, host="127.0.0.1", wait_seconds_max=settings.wait_seconds_max, **swarm
    )
    if settings.load_from is not None:
        saved = torch.load(Path(settings.load_from) / f"{settings.number}-{rank}.pt")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        communication.load_state_dict(saved["communication"])
    losses: list[float] = []
    with communication:
        for step in range(communication.num_steps, settings.num_steps):
            if step == settings.num_leave_after:
                os._exit(9)
            loss = loss_of(model, settings.number, step)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            time.sleep(settings.step_seconds)
    if settings.save_to is not None:
        saved = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "communication": communication.state_dict(),
        }
        torch.save(saved, Path(settings.save_to) / f"{settings.number}-{rank}.pt")
    return {
        "losses": losses,
        "num_steps": communication.num_steps,
        "num_rounds": communication.num_rounds,
        "parameters": [_whole(parameter).tolist() for parameter in model.parameters()],
        "moments": [
            {key: _whole(value).tolist() for key, value in optimizer.state[parameter].items() if key != "step"}
            for parameter in model.parameters()
        ],
    }


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def _wait_for(path: Path) -> str:
    while not path.exists():
        time.sleep(0.02)
    return path.read_text()


def _publish(ticket: str, path: Path) -> None:
    path.with_suffix(".new").write_text(ticket)
    path.with_suffix(".new").rename(path)


def main(settings: Settings, rank: int) -> None:
    torch.set_num_threads(1)
    folder = Path(settings.folder)
    if settings.num_ranks > 1:
        store = f"file://{folder}/store-{settings.number}"
        distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=settings.num_ranks)
    try:
        found = train(settings, rank)
    except (ValueError, FarflungError) as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    (folder / f"site-{settings.number}-{rank}.json").write_text(json.dumps(found))
    if settings.num_ranks > 1:
        distributed.destroy_process_group()


def arguments(settings: Settings, rank: int = 0) -> list[str]:
    """Command line of one rank."""
    return [sys.executable, "-m", "tests.apps.training_site", json.dumps(asdict(settings)), str(rank)]


if __name__ == "__main__":
    main(Settings(**json.loads(sys.argv[1])), int(sys.argv[2]))
