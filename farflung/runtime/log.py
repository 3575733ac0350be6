"""Decisions and their reasons: as lines of Python's logging, and the newest of a node kept for whoever asks."""

import datetime
import json
import logging
import os
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from farflung.world.address import PeerId

logger = logging.getLogger("farflung")

LogFormat = Literal["text", "json"]
FORMAT_VARIABLE = "FARFLUNG_LOG_FORMAT"
LINE = "%(asctime)s %(levelname).1s %(message)s"
NUM_KEPT_MAX = 1000
SENTENCE_LENGTH_MAX = 600


def start_logging(form: LogFormat) -> None:
    """Log decisions to standard error from now on, in this form, and let processes that this one starts do so too.

    Does nothing where this process logs already: what the command line says comes before what a run file says.
    """
    os.environ.setdefault(FORMAT_VARIABLE, form)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(LINE))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, node, role (the actor that decided), event (the sentence) and fields.

    Node and role are null for what no node says: messages of libraries, and of code that serves all actors.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        told = record.__dict__
        fields: dict[str, Any] = {"process": record.process or os.getpid(), "logger": record.name}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        entry = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "node": told.get("node"),
            "role": told.get("role"),
            "event": told.get("event") or record.getMessage(),
            "fields": fields | told.get("fields", {}),
        }
        return json.dumps(entry, ensure_ascii=False)


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
        self._number += 1
        told = {"node": self._peer, "role": actor, "event": sentence, "fields": {"number": self._number}}
        logger.info("node=%s actor=%s %s", self._peer[:8], actor, sentence, extra=told)
        self._kept.append(Kept(self._number, self._wall_seconds(), actor, sentence[:SENTENCE_LENGTH_MAX]))

    def after(self, number: int) -> list[Kept]:
        """Those that came after the one of this number (0: all that are kept), oldest first."""
        return [kept for kept in self._kept if kept.number > number]
