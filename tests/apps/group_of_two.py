"""Lets a group of two processes and a process alone do the same: `... RUN.toml FOLDER [KEY=VALUE ...]`.

Writes the greatest distances of what came of it to FOLDER/distances.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from farflung.apps.pretrain.engines import engine_of
from farflung.apps.pretrain.group_trainer import GroupTrainer
from farflung.apps.pretrain.materials import Materials
from farflung.apps.pretrain.run_file import PRETRAIN
from farflung.apps.runs.group import open_group
from farflung.learn.parameters import Tensors, copies
from farflung.learn.trainer import Trainer


def work(trainer: Trainer | GroupTrainer) -> dict[str, Any]:
    """Everything that engines do with a trainer."""
    found: dict[str, Any] = {}
    first = trainer.run(3, lambda step: 0.2 + step / 10)
    kept = trainer.optimizer.state()
    kept_tensors = copies(kept.tensors)
    with torch.no_grad():
        for tensor in trainer.parameters.values():
            tensor.detach().view(-1)[::2].mul_(0.9)
        for moment in trainer.optimizer.moments.values():
            for tensor in moment.values():
                tensor.mul_(0.5)
    trainer.optimizer.num_steps = 9
    second = trainer.run(2, lambda step: 0.5)
    loss = trainer.compute_gradients()
    for tensor in trainer.parameters.values():
        assert tensor.grad is not None
        tensor.grad.mul_(0.25)
    norm = trainer.apply(trainer.schedule(0.5))
    found["middle"] = copies(trainer.parameters)
    trainer.optimizer.load(kept_tensors, kept.values)
    third = trainer.run(1, lambda step: 0.6)
    found["scalars"] = torch.tensor([first.loss, first.gradient_norm, second.loss, loss, norm, third.loss])
    found["counts"] = [first.num_tokens, second.num_steps, trainer.optimizer.num_steps, trainer.num_tokens]
    found["cursor"] = trainer.stream.cursor
    found["end"] = copies(trainer.parameters)
    found |= {name: copies(moment) for name, moment in trainer.optimizer.moments.items()}
    return found


def farthest(one: Tensors, other: Tensors) -> float:
    """Greatest distance of two values."""
    assert [(name, tensor.shape) for name, tensor in one.items()] == [(n, t.shape) for n, t in other.items()]
    return max(float((tensor.detach() - other[name].detach()).abs().max()) for name, tensor in one.items())


def main(path: Path, folder: Path, *overrides: str) -> None:
    run = PRETRAIN.load(path, overrides)
    materials = Materials.gather(run)
    seat = next(seat for seat in engine_of(run).seats(run) if seat.kind == "worker")
    alone = work(materials.trainer(seat))
    with open_group(2, folder) as group:
        assert group is not None
        together = work(GroupTrainer(group, run, seat, materials))
        group.check()
    scalars = (alone.pop("scalars") - together.pop("scalars")).abs().max()
    assert all(alone.pop(name) == together.pop(name) for name in ("counts", "cursor"))
    distances = {name: farthest(tensors, together[name]) for name, tensors in alone.items()}
    (folder / "distances.json").write_text(json.dumps({"scalars": float(scalars), **distances}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
