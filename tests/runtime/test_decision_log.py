"""Decisions as lines of JSON: one object each, whatever is said."""

import json
import logging

from farflung.runtime.log import JsonFormatter, Notes, logger
from farflung.world.address import PeerId

PEER = PeerId("a" * 52)


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def logged(*sentences: str) -> list[str]:
    handler, level = Lines(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        notes = Notes(PEER, lambda: 5.0)
        for sentence in sentences:
            notes("swarm", sentence)
        try:
            raise OSError("a disk\nfails")
        except OSError:
            logger.exception("an actor failed")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return handler.lines


def test_each_decision_is_one_object_with_its_node_role_and_number() -> None:
    lines = logged('serves "0:2"\nat once', "日本 %s {}")
    assert not any("\n" in line for line in lines)
    first, second, failure = map(json.loads, lines)
    assert (first["node"], first["role"], first["event"]) == (PEER, "swarm", 'serves "0:2" at once')
    assert (first["fields"]["number"], second["fields"]["number"]) == (1, 2)
    assert second["event"] == "日本 %s {}" and first["level"] == "info" and first["time"].endswith("Z")
    assert (failure["node"], failure["level"], failure["event"]) == (None, "error", "an actor failed")
    assert "a disk\nfails" in failure["fields"]["exception"]


def test_what_a_library_says_is_one_too() -> None:
    record = logging.getLogger("other").makeRecord("other", logging.WARNING, "f", 1, "%d of %d", (1, 2), None)
    told = json.loads(JsonFormatter().format(record))
    assert (told["event"], told["fields"]["logger"], told["role"]) == ("1 of 2", "other", None)
    assert list(told) == ["time", "level", "node", "role", "event", "fields"]
