"""A checkpoint's fingerprint: the same however it is sharded, another for a variant tuned from it."""

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

HEADER_BYTES_MAX = 100 * 1024 * 1024
"""The safetensors format's own limit."""
SAMPLE_BYTES = 256
"""Read at the start, the middle and the end of every tensor: a fine-tune that moves a tensor moves these."""
VOLATILE_KEYS = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype"})
"""Configuration entries that say how a checkpoint was saved, not what it computes (tensor headers hold the types)."""


def fingerprint_of_folder(folder: Path, files: Iterable[Path]) -> str:
    """Hash the configuration, every tensor's name, type and shape, and samples of its bytes; hexadecimal, 256 bits."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stable = {key: value for key, value in config.items() if key not in VOLATILE_KEYS}
    digest = hashlib.sha256(_canonical(stable))
    tensors = sorted(entry for file in files for entry in _sampled_tensors(file))
    for name, description, samples in tensors:
        digest.update(_canonical([name, *description]))
        digest.update(samples)
    return digest.hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _sampled_tensors(path: Path) -> Iterator[tuple[str, tuple[str, list[int]], bytes]]:
    """Name, (type, shape) and sampled bytes of each tensor of one safetensors file."""
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        if length > HEADER_BYTES_MAX:
            raise ValueError(f"{path} is not a safetensors file: download or save the model again")
        header = json.loads(file.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            samples = []
            for offset in (begin, (begin + end) // 2, max(begin, end - SAMPLE_BYTES)):
                file.seek(8 + length + offset)
                samples.append(file.read(min(SAMPLE_BYTES, end - offset)))
            yield name, (entry["dtype"], entry["shape"]), b"".join(samples)
