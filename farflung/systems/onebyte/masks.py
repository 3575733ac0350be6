"""Masks that cancel in a sum: integers modulo 2^16 that each pair of a cohort adds and subtracts (pure).

    secret of a pair   X25519 of their keys, which each life of a participant draws anew and signs
    mask of a pair     ChaCha20 under BLAKE2b(secret; run, cohort, round): one integer for each value
    what is sent       values + masks of the pairs in which one's key is the smaller - masks of the others  (mod 2^16)

Without all others of its cohort nothing can be told of what a member sends; the sum over the cohort has no mask left.
One mask hides one message: nobody may send twice under the same cohort and round, nor for a round in two cohorts.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from farflung.systems.onebyte.header import HASH_BYTES
from farflung.wire.identity import BadSignature, Identity, Signed

MASK_KEY_PURPOSE = "onebyte mask key"
VALUE_TYPE = np.dtype("<u2")
SUM_TYPE = np.dtype("<i2")
COHORT_CHECK_BYTES = 8
NO_NONCE = bytes(16)
"""Each mask has a key of its own."""


class MaskKey:
    """One life's key for masks, and the secrets that it shares with others."""

    def __init__(self, private_key: bytes, run: bytes, identity: Identity) -> None:
        """`private_key`: 32 secret random bytes, of this life alone. `run`: the header's hash."""
        self._key = X25519PrivateKey.from_private_bytes(private_key)
        self._run = run
        self.public_key = self._key.public_key().public_bytes_raw()
        self.signed = identity.sign(MASK_KEY_PURPOSE, run + self.public_key)
        self._secrets: dict[bytes, bytes] = {}

    def mask(self, values: np.ndarray, others: Iterable[bytes], cohort: bytes, round_number: int) -> bytes:
        """Integers under the masks of all pairs with `others` (mask keys); `cohort` is its hash."""
        total = values.astype(np.int64)
        for other in others:
            mask = self._pair_mask(other, cohort, round_number, len(values)).astype(np.int64)
            total += mask if self.public_key < other else -mask
        return total.astype(VALUE_TYPE).tobytes()

    def _pair_mask(self, other: bytes, cohort: bytes, round_number: int, count: int) -> np.ndarray:
        if other not in self._secrets:
            self._secrets[other] = self._key.exchange(X25519PublicKey.from_public_bytes(other))
        content = self._run + cohort + round_number.to_bytes(8, "little")
        key = hashlib.blake2b(content, digest_size=32, key=self._secrets[other], person=b"farflung mask").digest()
        stream = Cipher(ChaCha20(key, NO_NONCE), mode=None).encryptor()
        return np.frombuffer(stream.update(bytes(count * VALUE_TYPE.itemsize)), dtype=VALUE_TYPE)


def mask_key_of(signed: Signed, run: bytes) -> bytes:
    """The mask key that a participant has signed for this run.

    Raises:
        ValueError: it is none.
    """
    try:
        _, content = signed.open(MASK_KEY_PURPOSE)
    except BadSignature as error:
        raise ValueError(str(error)) from None
    if len(content) != len(run) + 32 or not content.startswith(run):
        raise ValueError("a mask key of another run")
    return content[len(run) :]


def cohort_hash(members: Sequence[Signed]) -> bytes:
    """32 bytes that stand for who is in a cohort, and with which key."""
    digest = hashlib.blake2b(digest_size=HASH_BYTES, person=b"farflung cohort")
    for member in sorted(members, key=lambda each: each.public_key):
        digest.update(member.public_key + member.content)
    return digest.digest()


def unmasked_sum(sent: Iterable[bytes]) -> bytes:
    """The sum of what all members of a cohort have sent, as signed integers: their masks are gone."""
    total = sum(np.frombuffer(each, dtype=VALUE_TYPE).astype(np.int64) for each in sent)
    return np.asarray(total).astype(VALUE_TYPE).view(SUM_TYPE).tobytes()
