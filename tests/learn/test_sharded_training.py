"""A trainer on a model cut over two processes by FSDP2 learns what one process learns from both their batches."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from farflung.learn.parameters import joined
from tests.learn.models import Counting, end, llama_config, trainer_of
from tests.learn.training_ranks import CONFIG, HELD_OUT, NUM_STEPS

NUM_RANKS = 2
ROOT = Path(__file__).resolve().parents[2]


class Alternating(Counting):
    """The batches of both ranks in turn."""

    def __init__(self) -> None:
        super().__init__()
        self._streams = [Counting(seed=rank) for rank in range(NUM_RANKS)]

    def next_batch(self) -> torch.Tensor:
        self._streams.append(self._streams.pop(0))
        return self._streams[-1].next_batch()


def test_ranks_of_a_sharded_model_learn_what_one_process_learns(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.learn.training_ranks"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ranks = [
        subprocess.Popen([*command, str(rank), str(NUM_RANKS), str(tmp_path)], cwd=ROOT, env=environment)
        for rank in range(NUM_RANKS)
    ]
    try:
        assert [rank.wait(400) for rank in ranks] == [0] * NUM_RANKS
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    alone = trainer_of(llama_config(), CONFIG, num_micro_batches=NUM_RANKS)
    alone.stream = Alternating()
    descended = alone.run(NUM_STEPS, end)
    expected = joined({"parameters": alone.parameters, **alone.optimizer.moments})
    assert descended.gradient_norm > 0.75, "so that clipping takes part"
    for rank in range(NUM_RANKS):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert abs(found.pop("gradient_norm").item() - descended.gradient_norm) < 1e-5
        held_out = alone.evaluate([Counting(seed=HELD_OUT).next_batch()])
        assert abs(found.pop("evaluated").item() - held_out) < 1e-5
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor.detach(), atol=1e-6, rtol=1e-4)
