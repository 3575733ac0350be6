"""The process of `bench.offloading` that has less memory than the model: accelerate's disk offload.

    python -m bench.offloading_ends MODEL MEMORY_BYTES THREADS

prints a line of JSON about itself when it is loaded; then it answers each line of its input, a JSON object with
`prompt` (token ids) and `num_new`, with the tokens and what each took, and ends when its input does.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from bench.server_memory_ends import memory_bytes


def forget(files: list[Path]) -> None:
    """Drop them from the page cache: who has no memory for the weights has none for their pages either."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


class ColdClock(BaseStreamer):
    """Notes what each token took, all weights on disk being cold when it began; forgetting them is not counted."""

    def __init__(self, files: list[Path]) -> None:
        self.tokens: list[int] = []
        self.seconds: list[float] = []
        self._files = files
        self._began_at = 0.0

    def put(self, value: torch.Tensor) -> None:
        """First the prompt, then every token."""
        if self._began_at:
            self.seconds.append(time.perf_counter() - self._began_at)
            self.tokens += value.reshape(-1).tolist()
        forget(self._files)
        self._began_at = time.perf_counter()

    def end(self) -> None:
        """Nothing is left to do."""


def main() -> None:
    path, memory_limit, num_threads = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(num_threads)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        model: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.float32,
            device_map="auto",
            max_memory={"cpu": memory_limit},
            offload_folder=folder,
        )
        files = [*path.glob("*.safetensors"), *(one for one in Path(folder).rglob("*") if one.is_file())]
        places = list(model.hf_device_map.values())
        print(json.dumps({"num_modules": len(places), "num_on_disk": places.count("disk")}), flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            clock = ColdClock(files)
            prompt = torch.tensor([asked["prompt"]])
            model.generate(prompt, do_sample=False, max_new_tokens=asked["num_new"], streamer=clock)
            told = {"tokens": clock.tokens, "seconds": clock.seconds, "peak_bytes": memory_bytes("VmHWM")}
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
