"""When a rollout worker asks the hub for tasks: one question at a time, again after a silence, at once after news."""

NEVER = float("-inf")


class Asking:
    """The question that is out, if any, and when the next one is due."""

    def __init__(self, silence_seconds: float) -> None:
        self.number = 0
        """Of the newest question."""
        self.round_trip_seconds = 0.0
        """From the last question to its answer; 0: not yet known."""
        self._silence_seconds = silence_seconds
        self._is_out = False
        self._asked_at = NEVER
        self._due_at = NEVER
        self._has_news = False
        """Something happened since the newest question that its answer knows nothing of."""

    @property
    def due_at(self) -> float:
        """When to ask, or to ask again."""
        return self._asked_at + self._silence_seconds if self._is_out else self._due_at

    def ask(self, now: float) -> int:
        """A question goes out: its number."""
        self.number += 1
        self._asked_at, self._is_out, self._has_news = now, True, False
        return self.number

    def is_awaited(self, number: int) -> bool:
        """Whether this is the answer to the question that is out."""
        return self._is_out and number == self.number

    def answered(self, now: float, retry_after_seconds: float) -> None:
        """The answer has come; what happened meanwhile is asked about at once."""
        self.round_trip_seconds = now - self._asked_at
        self._is_out = False
        self._due_at = NEVER if self._has_news else now + retry_after_seconds

    def soon(self) -> None:
        """There is something to ask: now, or when the question that is out was answered."""
        self._due_at, self._has_news = NEVER, True

    def anew(self, due_at: float = NEVER) -> None:
        """Whatever is out will not be answered, or is of no use: ask again then."""
        self._is_out, self._due_at = False, due_at
