"""How many tokens to guess ahead: what pays most, by what forwards took and how often guesses were right (pure).

With acceptance a, a forward of one token and k guesses settles 1 + a + ... + a^k of them on average (Leviathan and
others, ICML 2023, equation 1). Its time is a + b n for n positions, learned from all forwards so far: over far links a,
the round trip, is nearly all of it, and on this machine b counts. So depth follows the links without being told them.
"""

from dataclasses import dataclass, field

DEPTH_MAX = 15
"""A server takes one more than this many positions for decoding, not for a prompt."""
DEPTH_FIRST = 4
"""As long as nothing is known."""
MEMORY = 0.95
"""Weight of a forward when the next one is counted."""
OUTLIER = 3.0
"""A forward that took so many times longer than expected was disturbed, and counts as that."""
PRIOR_WEIGHT = 2.0
PRIOR_ACCEPTANCE = 0.6
PROBE_TOKENS = 16
"""After so many tokens without a guess one is made, to see whether it pays by now; twice as many after each failure."""
PROBE_TOKENS_MAX = 512


@dataclass(slots=True)
class ForwardSeconds:
    """Least squares of seconds = a + b positions, with older forwards counting less."""

    _count: float = 0.0
    _positions: float = 0.0
    _squares: float = 0.0
    _seconds: float = 0.0
    _products: float = 0.0

    def add(self, num_positions: int, seconds: float) -> None:
        """A forward of so many positions took so long."""
        if self._count > 1:
            seconds = min(seconds, OUTLIER * self.of(num_positions))
        for name, value in (
            ("_count", 1.0),
            ("_positions", num_positions),
            ("_squares", num_positions**2),
            ("_seconds", seconds),
            ("_products", num_positions * seconds),
        ):
            setattr(self, name, MEMORY * getattr(self, name) + value)

    def of(self, num_positions: float) -> float:
        """What so many positions take: the mean while all forwards were of one size, 0 before there was one."""
        if not self._count:
            return 0.0
        mean_positions, mean = self._positions / self._count, self._seconds / self._count
        spread = self._squares / self._count - mean_positions**2
        if spread < 1e-6:
            return mean
        slope = (self._products / self._count - mean_positions * mean) / spread
        slope = min(max(slope, 0.0), mean / mean_positions)  # neither cheaper than one, nor one by one
        return mean + slope * (num_positions - mean_positions)


@dataclass(slots=True)
class DepthChooser:
    """The depth of one answer's guesses."""

    forwards: ForwardSeconds = field(default_factory=ForwardSeconds)
    _num_forwards: int = 0
    _num_right: float = PRIOR_WEIGHT * PRIOR_ACCEPTANCE
    _num_tried: float = PRIOR_WEIGHT
    _guess_seconds: float = 0.0
    """To make one guess."""
    _num_since_guess: int = 0
    _num_until_probe: int = PROBE_TOKENS

    @property
    def acceptance(self) -> float:
        """Of a guess, if those before it were right."""
        return self._num_right / self._num_tried

    def depth(self, num_max: int) -> int:
        """Guesses to make now, at most `num_max`."""
        num_max = min(num_max, DEPTH_MAX)
        if self._num_forwards < 2:
            return min(num_max, DEPTH_FIRST)
        best = max(range(num_max + 1), key=self._rate)
        if best == 0 and self._num_since_guess >= self._num_until_probe:
            return min(num_max, 1)
        return best

    def _rate(self, depth: int) -> float:
        """Tokens settled per second."""
        num_settled = sum(self.acceptance**number for number in range(depth + 1))
        return num_settled / (self.forwards.of(depth + 1) + depth * self._guess_seconds)

    def guessed(self, num_guesses: int, seconds: float) -> None:
        """So many guesses took so long to make."""
        if num_guesses:
            self._guess_seconds += 0.2 * (seconds / num_guesses - self._guess_seconds)

    def settled(self, num_guesses: int, num_right: int, seconds: float) -> None:
        """A forward of one token and so many guesses: the first `num_right` of them were right."""
        self._num_forwards += 1
        self.forwards.add(num_guesses + 1, seconds)
        if not num_guesses:
            self._num_since_guess += 1
            return
        is_probe = self._num_since_guess >= self._num_until_probe
        if is_probe and num_right == 0:
            self._num_until_probe = min(2 * self._num_until_probe, PROBE_TOKENS_MAX)
        elif num_right:
            self._num_until_probe = PROBE_TOKENS
        self._num_since_guess = 0
        self._num_right = MEMORY * self._num_right + num_right
        self._num_tried = MEMORY * self._num_tried + min(num_right + 1, num_guesses)
