"""One rank of a site of gloo processes: `python -m tests.learn.tensor_shard_ranks RANK NUM_RANKS FOLDER`."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from farflung.learn.redistribute import Redistribution, Site
from farflung.learn.tensor_shards import cut_lanes, local_pieces, local_values

SHAPES: dict[str, tuple[int, ...]] = {"rows": (5, 3), "columns": (4, 6), "everywhere": (7,), "short": (1, 4), "one": ()}
PLACEMENTS = {"rows": Shard(0), "columns": Shard(1), "everywhere": Replicate(), "short": Shard(0), "one": Replicate()}


def whole_tensors(seed: int) -> dict[str, torch.Tensor]:
    """The unsharded values of one site."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def lanes_of_rank(num_lanes: int, site: Site, shapes: Mapping[str, tuple[int, ...]]) -> list[dict[str, object]]:
    """For every rank, the pieces of the lanes it speaks for, joined."""
    spoken: list[dict[str, object]] = [{} for _ in range(site.num_ranks)]
    for number, lane in enumerate(cut_lanes(shapes, num_lanes)):
        for name, pieces in lane.items():
            speaker = spoken[number * site.num_ranks // num_lanes]
            speaker[name] = (*speaker.get(name, ()), *pieces)  # type: ignore[misc]
    return spoken


def averaged_over_lanes(
    site: Site, num_lanes: int, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, object], int]:
    """Average this site's sharded values with another site's in `num_lanes` lanes; (whole averages, values moved)."""
    mesh = init_device_mesh("cpu", (site.num_ranks,))
    own = {
        name: distribute_tensor(values.to(dtype), mesh, [PLACEMENTS[name]]) for name, values in whole_tensors(1).items()
    }
    other = whole_tensors(2)
    shards = site.layouts({name: local_pieces(name, tensor) for name, tensor in own.items()})
    lanes = lanes_of_rank(num_lanes, site, SHAPES)
    lengths = {name: sum(piece.length for piece in pieces) for name, pieces in lanes[site.rank].items()}  # type: ignore[attr-defined]
    spoken = {name: torch.zeros(length) for name, length in lengths.items()}
    local = {name: local_values(tensor).reshape(-1) for name, tensor in own.items()}
    outward, inward = Redistribution(site, shards, lanes), Redistribution(site, lanes, shards)  # type: ignore[arg-type]
    outward.move(local, spoken)
    for name, values in spoken.items():
        pieces = lanes[site.rank][name]
        theirs = [other[name].reshape(-1)[piece.offset : piece.end] for piece in pieces]  # type: ignore[attr-defined]
        values.copy_((values + torch.cat(theirs)) / 2)
    inward.move(spoken, local)
    for name, tensor in own.items():
        local_values(tensor).copy_(local[name].view_as(local_values(tensor)))
    return {name: tensor.full_tensor() for name, tensor in own.items()}, outward.num_values_moved


def fsdp_values_moved(site: Site) -> int:
    """What an FSDP2 model moves inside a site with as many lanes as ranks."""
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    fully_shard(model)
    parameters = dict(model.named_parameters())
    assert all(isinstance(parameter, DTensor) for parameter in parameters.values())
    shards = site.layouts({name: local_pieces(name, parameter) for name, parameter in parameters.items()})
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    lanes = lanes_of_rank(site.num_ranks, site, shapes)
    return Redistribution(site, shards, lanes).num_values_moved + Redistribution(site, lanes, shards).num_values_moved  # type: ignore[arg-type]


def main(rank: int, num_ranks: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks)
    site = Site()
    found: dict[str, object] = {"fsdp": fsdp_values_moved(site)}
    for num_lanes in (1, 2, 3):
        averages, num_moved = averaged_over_lanes(site, num_lanes)
        found[str(num_lanes)] = {name: tensor.tolist() for name, tensor in averages.items()}  # type: ignore[attr-defined]
        found[f"moved {num_lanes}"] = num_moved
    halved, _ = averaged_over_lanes(site, 3, torch.bfloat16)
    found["bfloat16"] = {name: tensor.float().tolist() for name, tensor in halved.items()}  # type: ignore[attr-defined]
    (folder / f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
