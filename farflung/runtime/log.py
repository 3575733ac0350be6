"""Decisions and their reasons as lines of Python's logging."""

import logging
from collections.abc import Callable

from farflung.world.address import PeerId

logger = logging.getLogger("farflung")

LINE = "%(asctime)s %(levelname).1s %(message)s"


def noter(peer: PeerId) -> Callable[[str, str], None]:
    """The `note` of a node: one line with its short id, the actor and the sentence."""

    def note(actor: str, sentence: str) -> None:
        logger.info("node=%s actor=%s %s", peer[:8], actor, sentence.replace("\n", " "))

    return note
