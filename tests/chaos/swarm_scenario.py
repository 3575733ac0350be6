"""One swarm scenario with faults, told as the hash of its trace: `python -m tests.chaos.swarm_scenario SEED`."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from farflung.sim.faults import Faults
from tests.chaos.swarm_modes import MODES
from tests.swarms import SimulatedSwarm, SmallModel, tokens

SERVERS = {"a1": (0, 2), "a2": (0, 2), "b1": (2, 4), "b2": (2, 4), "c1": (1, 3)}
SITES = {"a1": "asia", "a2": "europe", "b1": "europe", "b2": "america", "c1": "america"}


def run(seed: int) -> tuple[str, str, int]:
    """The trace's hash, the words that were said, and how many faults struck."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        small = SmallModel.make("llama", Path(folder))
        sites = sorted(set(SITES.values()))
        faults = Faults.random(seed, sorted(SERVERS), until=3.0, num_faults=5, loss=0.03, sites=sites)
        with SimulatedSwarm(small, SERVERS, sites=SITES, seed=seed, faults=faults) as swarm:
            prompt = tokens(small, 1, 6)
            said = [str(MODES[mode](swarm.model, prompt).tolist()) for mode in ("decode", "beam", "lookup")]
            inputs = torch.ones(1, 3, small.source.hidden_size, requires_grad=True)
            swarm.model(inputs_embeds=inputs).logits.sum().backward()
            trace = swarm.simulation.trace
            return trace.trace_hash, "; ".join(said), sum(1 for _ in trace.of("fault"))


if __name__ == "__main__":
    sys.stdout.write(" | ".join(map(str, run(int(sys.argv[1])))) + "\n")
