"""Which answers are checked before they are trained on, and with what: each is drawn for once."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from farflung.learn.parameters import Tensors
from farflung.systems.alignment.config import AlignmentConfig
from farflung.systems.alignment.ledger import Answer
from farflung.systems.alignment.protocols import Auditor, Environment

Check = Callable[[], str | None]
"""Why an answer is a lie; None: it is none. For the compute door."""


class Audits:
    """Conversations are all checked for words put into the environment's mouth, which takes no model."""

    def __init__(
        self, config: AlignmentConfig, environment: Environment, auditor: Auditor | None, draw: Callable[[], float]
    ) -> None:
        """`draw`: a number from 0 to 1 that nobody else can foresee."""
        self._share = config.audit_share
        self._environment = environment
        self._auditor = auditor
        self._draw = draw
        self._drawn: dict[tuple[int, int, str], None] = {}

    def due(self, answer: Answer, weights: Mapping[int, Tensors]) -> Iterator[Check]:
        """Checks that are to be made now; `weights` by version."""
        key = (*answer.rollout.key, answer.worker)
        if key in self._drawn:
            return
        self._drawn[key] = None
        if answer.rollout.observed:
            yield partial(self._environment.fault, answer.rollout)
        if self._auditor is not None and self._draw() < self._share:
            yield partial(self._auditor.check, answer.rollout, weights)

    def forget(self, is_closed: Callable[[int], bool]) -> None:
        """Prompts that are closed do not come again."""
        self._drawn = {key: None for key in self._drawn if not is_closed(key[0])}
