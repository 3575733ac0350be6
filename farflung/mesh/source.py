"""How a member stands with one rendezvous node: what it acknowledged, and how far its stream was followed."""

from dataclasses import dataclass

from farflung.mesh.book import NOTHING


@dataclass(slots=True)
class Source:
    """One rendezvous node as a source of news."""

    retry_at: float
    """When to speak to it again if it has not answered, on the monotonic clock."""
    retry_seconds: float
    """Until the time after that."""
    stream: int = 0
    """What it sends us now; 0: nothing yet."""
    number: int = -1
    """The last part that came without a gap."""
    acknowledged: tuple[int, int] = NOTHING
    """Version of our record that it says it holds; none since it was last lost."""
    is_following: bool = False
    """It answered our last word about the stream."""

    def owes_answer(self, version: tuple[int, int], *, is_followed: bool) -> bool:
        """Whether something that we said to it is unanswered: our record of that version, or a word on its stream."""
        return self.acknowledged < version or (is_followed and not self.is_following)

    def spoken(self, now: float, retry_seconds_max: float) -> None:
        """We spoke to it: wait longer each time before repeating ourselves."""
        self.retry_at = now + self.retry_seconds
        self.retry_seconds = min(2 * self.retry_seconds, retry_seconds_max)

    def lost(self, now: float) -> None:
        """The way to it broke: nothing that was under way counts."""
        self.forget_stream()
        self.acknowledged = NOTHING
        self.retry_at = max(self.retry_at, now + self.retry_seconds)

    def forget_stream(self) -> None:
        """Follow a new stream from its beginning."""
        self.stream, self.number, self.is_following = 0, -1, False

    def goes_on(self, stream: int, number: int) -> bool:
        """It says which part of that stream is the newest; False if we lack it: then the stream is forgotten."""
        if stream == self.stream and number > self.number:
            self.forget_stream()
            return False
        self.is_following = stream == self.stream
        return True

    def follow(self, stream: int, number: int) -> bool:
        """A part came; False if parts before it are missing: then the stream is forgotten."""
        if number == 0 and stream != self.stream:
            self.stream, self.number, self.is_following = stream, 0, True
        elif stream == self.stream and number == self.number + 1:
            self.number = number
        elif stream == self.stream and number > self.number:
            self.forget_stream()
            return False
        return True
