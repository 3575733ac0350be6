"""A keyed permutation of 0 .. length - 1 that is computed by index: a shuffle that takes no memory.

A Feistel network (Luby and Rackoff 1988) with BLAKE2b as its round function permutes the next power of two; what lands
beyond the length is sent through again until it lands within (cycle walking, Black and Rogaway 2002), which keeps it a
bijection and takes less than two passes on average.
"""

import hashlib
from dataclasses import dataclass

NUM_ROUNDS = 6
"""Four make a network indistinguishable from random; short halves (small data) are given two more."""


@dataclass(frozen=True, slots=True)
class Permutation:
    """A bijection of range(length); every key gives another one."""

    length: int
    key: bytes
    """Up to 64 bytes."""

    def __call__(self, index: int) -> int:
        """Where `index`, at least 0 and below the length, is sent."""
        assert 0 <= index < self.length, f"{index} is not one of {self.length}"
        num_bits = (self.length - 1).bit_length()
        image = self._pass(index, num_bits)
        while image >= self.length:
            image = self._pass(image, num_bits)
        return image

    def _pass(self, value: int, num_bits: int) -> int:
        num_right = num_bits // 2
        num_left = num_bits - num_right
        left, right = value >> num_right, value & ((1 << num_right) - 1)
        for number in range(NUM_ROUNDS):
            # The halves change places in every round; of an odd number of bits one half has one more.
            left, right = right, left ^ (self._hash(number, right) & ((1 << num_left) - 1))
            num_left, num_right = num_right, num_left
        return left << num_right | right

    def _hash(self, number: int, half: int) -> int:
        content = number.to_bytes(1, "little") + half.to_bytes(8, "little")
        return int.from_bytes(hashlib.blake2b(content, digest_size=8, key=self.key).digest(), "little")
