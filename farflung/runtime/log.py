"""Decisions and their reasons: as lines of Python's logging, and the newest of a node kept for whoever asks."""

import logging
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from farflung.world.address import PeerId

logger = logging.getLogger("farflung")

LINE = "%(asctime)s %(levelname).1s %(message)s"
NUM_KEPT_MAX = 1000
SENTENCE_LENGTH_MAX = 600


class Kept(NamedTuple):
    """One decision."""

    number: int
    """Of the node, counted from 1."""
    wall_seconds: float
    actor: str
    sentence: str


class Notes:
    """The `note` of a node: one line with its short id, the actor and the sentence."""

    def __init__(self, peer: PeerId, wall_seconds: Callable[[], float], num_kept_max: int = NUM_KEPT_MAX) -> None:
        self._peer = peer
        self._wall_seconds = wall_seconds
        self._kept: deque[Kept] = deque(maxlen=num_kept_max)
        self._number = 0

    def __call__(self, actor: str, sentence: str) -> None:
        sentence = sentence.replace("\n", " ")
        logger.info("node=%s actor=%s %s", self._peer[:8], actor, sentence)
        self._number += 1
        self._kept.append(Kept(self._number, self._wall_seconds(), actor, sentence[:SENTENCE_LENGTH_MAX]))

    def after(self, number: int) -> list[Kept]:
        """Those that came after the one of this number (0: all that are kept), oldest first."""
        return [kept for kept in self._kept if kept.number > number]
