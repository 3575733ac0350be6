"""Shards as pieces of the whole: sites that shard differently mean the same values, and average to the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor.placement_types import _StridedShard

from farflung.learn import redistribute
from farflung.learn.redistribute import Redistribution, Site
from farflung.learn.tensor_shards import (
    Holding,
    Piece,
    _shard,
    cut_lanes,
    local_pieces,
    pieces_of_block,
    plan_transfers,
)
from tests.learn.tensor_shard_ranks import SHAPES, whole_tensors

ROOT = Path(__file__).parents[2]


def values_of(pieces: tuple[Piece, ...], whole: torch.Tensor) -> torch.Tensor:
    flat = whole.reshape(-1)
    return torch.cat([flat[piece.offset : piece.end] for piece in pieces])


def test_pieces_of_a_block_are_its_values_in_their_order() -> None:
    whole = torch.arange(2 * 5 * 3 * 2).reshape(2, 5, 3, 2)
    for indices in ([[0, 1], [1, 2], [0, 1, 2], [0, 1]], [[1], [0, 2, 3], [1, 2], [0, 1]], [[0, 1], [4], [0, 2], [1]]):
        pieces = pieces_of_block("w", whole.shape, indices)
        block = whole
        for dimension, chosen in enumerate(indices):
            block = block.index_select(dimension, torch.tensor(chosen))
        assert torch.equal(values_of(pieces, whole), block.reshape(-1))
    assert pieces_of_block("w", (4, 6), [[2, 3], list(range(6))]) == (Piece("w", 12, 12),)
    assert pieces_of_block("w", (4, 6), [[], list(range(6))]) == ()
    assert pieces_of_block("w", (), []) == (Piece("w", 0, 1),)


@pytest.mark.parametrize("num_rows", [1, 7, 8, 13])
def test_a_strided_shard_has_the_rows_that_torch_gives_it(num_rows: int) -> None:
    rows = torch.arange(num_rows)
    for num_strides, num_shards in ((2, 2), (2, 3), (4, 2)):
        expected, _ = _StridedShard(0, split_factor=num_strides)._split_tensor(rows, num_shards, with_padding=False)
        for shard in range(num_shards):
            assert _shard(rows.tolist(), num_shards, shard, num_strides) == expected[shard].tolist()


@pytest.mark.parametrize("num_lanes", [1, 2, 3, 9])
def test_lanes_hold_every_value_once(num_lanes: int) -> None:
    lanes = cut_lanes(SHAPES, num_lanes)
    for name, whole in whole_tensors(1).items():
        held = sorted(piece for lane in lanes for piece in lane.get(name, ()))
        assert torch.equal(values_of(tuple(held), whole), whole.reshape(-1))


def test_a_rank_takes_from_itself_first_and_is_told_what_nobody_holds() -> None:
    sources = [Holding([Piece("w", 0, 6)]), Holding([Piece("w", 0, 2), Piece("w", 5, 5)])]
    plan = plan_transfers(sources, [[], [Piece("w", 0, 10)]])
    assert [(transfer.source, *transfer.piece[1:]) for transfer in plan] == [(1, 0, 2), (0, 2, 3), (1, 5, 5)]
    with pytest.raises(ValueError, match="no rank of this site holds values 10 to 12 of w"):
        plan_transfers(sources, [[Piece("w", 3, 9)]])


def test_a_single_process_is_a_site_and_a_plain_tensor_one_piece() -> None:
    site, whole = Site(), whole_tensors(3)
    pieces = {name: local_pieces(name, tensor) for name, tensor in whole.items()}
    lanes = cut_lanes(SHAPES, 1)
    moved = {name: torch.zeros(tensor.numel()) for name, tensor in whole.items()}
    Redistribution(site, site.layouts(pieces), lanes).move({n: t.reshape(-1) for n, t in whole.items()}, moved)
    assert all(torch.equal(moved[name], tensor.reshape(-1)) for name, tensor in whole.items())


def test_batches_are_bounded_and_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redistribute, "NUM_VALUES_MAX", 4)
    (plan,) = [plan_transfers([Holding([Piece("w", 0, 23)]), Holding([])], [[], [Piece("w", 1, 22)]])]
    batches = list(redistribute._batches(plan))
    assert all(sum(transfer.piece.length for transfer in batch) <= 4 for batch in batches)
    parts = [transfer.piece for batch in batches for transfer in batch]
    assert [value for part in parts for value in range(part.offset, part.end)] == list(range(1, 23))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """What two gloo processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.learn.tensor_shard_ranks"]
    processes = [subprocess.Popen([*command, str(rank), "2", str(folder)], cwd=ROOT) for rank in range(2)]
    assert [process.wait(400) for process in processes] == [0, 0]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("num_lanes", [1, 2, 3])
def test_any_layout_and_number_of_lanes_give_the_same_average(ranks: list[dict[str, object]], num_lanes: int) -> None:
    own, other = whole_tensors(1), whole_tensors(2)
    for rank in ranks:
        for name, found in rank[str(num_lanes)].items():  # type: ignore[attr-defined]
            assert torch.equal(torch.tensor(found), (own[name] + other[name]) / 2)


def test_short_values_are_averaged_in_full_and_rounded_once(ranks: list[dict[str, object]]) -> None:
    own, other = whole_tensors(1), whole_tensors(2)
    for name, found in ranks[0]["bfloat16"].items():  # type: ignore[attr-defined]
        assert torch.equal(torch.tensor(found), ((own[name].bfloat16().float() + other[name]) / 2).bfloat16().float())


def test_nothing_moves_inside_a_site_whose_ranks_are_the_lanes(ranks: list[dict[str, object]]) -> None:
    assert ranks[0]["fsdp"] == 0
    # Uneven rows, columns and copies: only the columns cross with two lanes, and with one lane the second rank's part.
    assert ranks[0]["moved 2"] == 12
    assert ranks[0]["moved 1"] == 2 * 3 + 4 * 3
