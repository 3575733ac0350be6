"""What virtual time charges where a real run computes."""

import math
from dataclasses import dataclass

from farflung.systems.alignment.policy import ROWS_AT_ONCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Charges:
    """Seconds on a node that is as fast as the usual one."""

    step_seconds: float = 0.0
    """One optimizer step."""
    pack_seconds: float = 0.0
    """A version of the weights at the trainer,"""
    install_seconds: float = 0.0
    """and at a worker that puts it together."""
    token_seconds: float = 0.0
    """One token of one answer, if many are decoded together;"""
    forward_seconds: float = 0.0
    """one of all of a batch, however few they are."""
    prompt_seconds: float = 0.0
    """Reading an answer's prompt, for each of its tokens."""

    def seconds_of_token(self, num_answers: int) -> float:
        """One more token of so many answers."""
        decoding = max(num_answers * self.token_seconds, math.ceil(num_answers / ROWS_AT_ONCE) * self.forward_seconds)
        return decoding + num_answers * self.prompt_seconds


NO_CHARGES = Charges()
"""Of a run that takes its time by itself."""
