"""Gumbel noise by counter: the token at each place of an answer depends on logits and on a named stream alone.

The token is the arg max of logits + noise, which is a draw from their softmax (temperature 1). Whoever knows the
stream's name can draw any place again, without those before it, and so check tokens that somebody else has sampled.

Bits are those of Philox 4x64 (Salmon and others, SC 2011) as NumPy gives them: raw integers, promised to stay the same.
"""

import hashlib
import struct
from collections.abc import Sequence

import numpy as np
import torch

KEY_BYTES = 16
WORDS_PER_BLOCK = 4
UNIT = 2.0**-53
"""Step of the 53 bits that become a number between 0 and 1."""


def stream_key(seed: int, prompt: int, member: int) -> bytes:
    """Names the stream of answer `member` to prompt number `prompt` in the run of this seed."""
    content = struct.pack("<qqq", seed, prompt, member)
    return hashlib.blake2b(content, digest_size=KEY_BYTES, person=b"farflung answer").digest()


def gumbel_noise(key: bytes, place: int, num_values: int) -> np.ndarray:
    """float64 [num_values]: the noise of a stream for the answer's token at `place`, from 0."""
    bits = np.random.Philox(key=np.frombuffer(key, dtype="<u8").astype(np.uint64))
    bits.advance(place * -(-num_values // WORDS_PER_BLOCK))
    uniform = ((bits.random_raw(num_values) >> np.uint64(11)) + 0.5) * UNIT
    return -np.log(-np.log(uniform))


def noisy(logits_NV: torch.Tensor, keys: Sequence[bytes], places: Sequence[int]) -> torch.Tensor:
    """Logits plus the noise of each row's own stream and place, float64 [N, V]; the arg max is the token."""
    noise = np.stack([gumbel_noise(key, place, logits_NV.shape[1]) for key, place in zip(keys, places, strict=True)])
    return logits_NV.float().double() + torch.from_numpy(noise).to(logits_NV.device)
