"""What the ranks of a group make of a model: the same weights, on an accelerator each, whole or cut in shards."""

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from farflung.apps.capacity import choose_device


def check_accelerators(name: str, num_ranks: int) -> None:
    """Refuse more ranks on this machine than it has accelerators, unless they use none.

    Raises:
        ValueError: there are too few.
    """
    device = choose_device(name)
    if device.type == "cpu" or num_ranks == 1:
        return
    num_accelerators = torch.cuda.device_count() if device == torch.device("cuda") else 1
    if num_accelerators < num_ranks:
        raise ValueError(
            f"{num_ranks} ranks need an accelerator each, and {device} here means {num_accelerators}: start fewer "
            'ranks, or set the device to "cpu"'
        )


def device_of(name: str, local_rank: int) -> torch.device:
    """Each process of a machine has an accelerator of its own.

    Raises:
        ValueError: there are too few.
    """
    check_accelerators(name, local_rank + 1)
    device = choose_device(name)
    if device == torch.device("cuda"):
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    return device


def take_first_weights(model: nn.Module) -> None:
    """All ranks take over what the model of the first one holds; call it before the model is moved or cut."""
    for tensor in (*model.parameters(), *model.buffers()):
        distributed.broadcast(tensor.detach(), src=0)


def cut(model: PreTrainedModel, device: torch.device, num_ranks: int) -> None:
    """Leave a shard of every tensor on each rank (FSDP2): layer by layer, and the rest as one."""
    mesh = init_device_mesh(device.type, (num_ranks,))
    num_layers: int = model.config.get_text_config().num_hidden_layers
    for module in list(model.modules()):
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            for layer in module:
                fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
