"""The codec of what goes up one link, chosen by the bandwidth that was measured on it."""

from collections import deque
from collections.abc import Callable

from farflung.learn.feedback import choose_codec
from farflung.learn.parameters import Tensors, num_bytes
from farflung.systems.hierarchy.config import AUTO
from farflung.world.effects import Note

DECISIONS_MAX = 1000
"""Sentences that are kept until somebody takes them."""


class UplinkCodec:
    """What one client of a link sends its updates in."""

    def __init__(
        self, codec: str, share_max: float, parameters: Tensors, bytes_per_second: Callable[[], float | None]
    ) -> None:
        """`codec`: as set, perhaps `auto`; `share_max`: of the time between two updates that one may spend on the wire;
        `bytes_per_second()`: bandwidth seen towards the server, if any was."""
        self._codec = codec
        self._share_max = share_max
        self._num_bytes = num_bytes(parameters)
        self._bytes_per_second = bytes_per_second
        self._last = ""
        self.decisions: deque[str] = deque(maxlen=DECISIONS_MAX)
        """What was chosen, with reasons; whoever writes it down takes it out."""

    def choose(self, seconds: float) -> tuple[str, list[Note]]:
        """The codec of the next update, `seconds` after the last one, and a note if it is another than before."""
        if self._codec != AUTO:
            return self._codec, []
        rate = self._bytes_per_second()
        if rate is None:
            codec, why = "raw", "no large message has been timed on this link yet"
        else:
            codec, why = choose_codec(rate, self._num_bytes, self._share_max * seconds)
            why = f"{why} at the measured {rate / 1e6:.3g} MB/s"
        if codec == self._last:
            return codec, []
        self._last = codec
        sentence = f"updates go up in {codec}: {why}"
        self.decisions.append(sentence)
        return codec, [Note(sentence)]
