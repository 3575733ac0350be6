"""One rank of a trainer whose model is cut by FSDP2, for test_sharded_training: `... RANK NUM_RANKS FOLDER`."""

import sys
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from farflung.learn.optimizer import NamedOptimizer
from farflung.learn.optimizer_config import OptimizerConfig
from farflung.learn.parameters import Tensors, joined, named_parameters
from farflung.learn.schedule import Constant
from farflung.learn.trainer import Trainer
from tests.learn.models import Counting, end, llama_config, model_of

CONFIG = OptimizerConfig(learning_rate=0.01, clip_norm=0.5)
NUM_STEPS = 4
HELD_OUT = 77
"""Seed of the sequences held out."""


def whole(tensors: Tensors) -> Tensors:
    """Shards put together; every rank must call it."""
    assert all(isinstance(tensor, DTensor) for tensor in tensors.values()), "the model is sharded"
    return {name: cast(DTensor, tensor).full_tensor().detach() for name, tensor in tensors.items()}


def main(rank: int, num_ranks: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks)
    model: Any = model_of(llama_config())
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = NamedOptimizer(named_parameters(model), CONFIG)
    trainer = Trainer(model, optimizer, Counting(seed=rank), Constant())
    descended = trainer.run(NUM_STEPS, end)
    loss = trainer.evaluate([Counting(seed=HELD_OUT).next_batch()])
    found = whole(joined({"parameters": trainer.parameters, **optimizer.moments}))
    found["gradient_norm"] = torch.tensor(descended.gradient_norm, dtype=torch.float64)
    found["evaluated"] = torch.tensor(loss, dtype=torch.float64)
    save_file(found, folder / f"{rank}.safetensors")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
