"""`farflung join` that lies of its own tokens, half of the time: python -m tests.loopback.lying_worker TICKET HOME."""

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from farflung.apps.align.materials import Materials
from farflung.apps.runs.take_seat import take_seat
from farflung.apps.wiring import Place
from farflung.systems.alignment.policy import SamplingPolicy
from farflung.systems.alignment.rollouts import Failure, Rollout


class LyingPolicy(SamplingPolicy):
    """Calls every token likelier than it was, in every second group."""

    def advance(self, num_tokens: int) -> Sequence[Rollout | Failure]:
        """As an honest one's, but for the log-probabilities."""
        return [told(one) for one in super().advance(num_tokens)]


def told(one: Rollout | Failure) -> Rollout | Failure:
    """What it says instead."""
    if isinstance(one, Failure) or one.prompt % 2:
        return one
    return msgspec.structs.replace(one, log_probabilities=tuple(value / 2 for value in one.log_probabilities))


def lie() -> None:
    """Materials of this process make lying policies."""
    honest = Materials.policy

    def policy(self: Materials) -> SamplingPolicy:
        made = honest(self)
        made.__class__ = LyingPolicy
        return made

    pytest.MonkeyPatch().setattr(Materials, "policy", policy)


if __name__ == "__main__":
    lie()
    take_seat(sys.argv[1], Place(home=Path(sys.argv[2])), seat=None, region=None, result=None)
