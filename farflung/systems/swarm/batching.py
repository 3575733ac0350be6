"""What a block server computes next: batches of decode steps and chunks of prompts under a budget of tokens (pure).

Clients share by tokens: whoever has been served least comes first, and who comes back after a pause gets no arrears.
Within a batch every decode step that waits comes before any prompt; a prompt gets what they leave of the budget and a
quarter of it at least, so neither starves the other. Requests without a session (tuning, scoring) run when nothing
else waits, or once they have waited long.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from farflung.model.span import Span
from farflung.systems.swarm.jobs import RequestJob, StepJob
from farflung.world.address import PeerId

PROMPT_SHARE_MIN = 0.25
"""Of a batch's tokens, for prompts, however many decode steps wait."""
REQUEST_SECONDS_MAX = 2.0
"""A request without a session that has waited so long comes before sessions."""
NUM_CLIENTS_REMEMBERED = 4096

Group = tuple[Span, int, int]
"""Sessions on the same blocks of the same span can be computed together."""


@dataclass(frozen=True, slots=True)
class Part:
    """So many positions of a step."""

    job: StepJob
    num_positions: int

    @property
    def num_tokens(self) -> int:
        return self.num_positions * self.job.num_rows


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What is computed together, on the same blocks."""

    parts: tuple[Part, ...]

    @property
    def num_tokens(self) -> int:
        return sum(part.num_tokens for part in self.parts)


@dataclass(slots=True)
class BatchQueue:
    """What waits, in one line per client."""

    num_jobs_max: int
    num_sessions_max: int
    """Sessions in one batch."""
    _lines: dict[PeerId, deque[StepJob | RequestJob]] = field(default_factory=dict[PeerId, deque[StepJob | RequestJob]])
    _served: dict[PeerId, float] = field(default_factory=dict[PeerId, float])
    """Tokens of each client, beginning with what others had when it came."""
    _served_last: float = 0.0
    """What the client that was chosen last had been served before."""

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    @property
    def is_full(self) -> bool:
        return len(self) >= self.num_jobs_max

    @property
    def num_tokens(self) -> int:
        """Tokens that wait."""
        return sum(job.num_tokens_left for line in self._lines.values() for job in line)

    def push(self, job: StepJob | RequestJob) -> None:
        """Append a job to its client's line. The caller has checked `is_full`."""
        client = job.client
        if client not in self._lines:
            self._lines[client] = deque()
            self._served[client] = max(self._served.pop(client, 0.0), self._served_last)
            if len(self._served) > NUM_CLIENTS_REMEMBERED:
                self._served = {each: self._served[each] for each in self._lines}
        self._lines[client].append(job)

    def withdraw(self, session: object) -> list[StepJob]:
        """Take the steps of a session out, in order."""
        jobs = self.jobs_of(session)
        for job in jobs:
            self._remove(job)
        return jobs

    def put_back(self, job: StepJob) -> None:
        """A job that is not done comes first in its client's line."""
        self._lines.setdefault(job.client, deque()).appendleft(job)
        self._served.setdefault(job.client, self._served_last)

    def jobs_of(self, session: object) -> list[StepJob]:
        """The steps of a session that wait."""
        return [
            job for line in self._lines.values() for job in line if isinstance(job, StepJob) and job.session is session
        ]

    def ready_at(self) -> float | None:
        """When the first of those that wait for room may try again; None if none does."""
        times = [job.waits_until for line in self._lines.values() for job in line if isinstance(job, StepJob)]
        return min((time for time in times if time > 0), default=None)

    def form(self, now: float, num_tokens_max: int) -> Batch | RequestJob | None:
        """Take what to compute next out of the queue; None if nothing can be computed now."""
        self._drop_closed()
        steps = [job for job in self._by_turns(now) if isinstance(job, StepJob)]
        request = min(
            (job for line in self._lines.values() for job in line if isinstance(job, RequestJob)),
            key=lambda job: job.accepted_at,
            default=None,
        )
        if request is not None and (not steps or now - request.accepted_at >= REQUEST_SECONDS_MAX):
            self._take(request, request.num_tokens_left)
            return request
        if not steps:
            return None
        parts = _choose(steps, num_tokens_max, self.num_sessions_max)
        for part in parts:
            self._take(part.job, part.num_tokens)
        return Batch(tuple(parts))

    def _by_turns(self, now: float) -> Iterator[StepJob | RequestJob]:
        """What could be computed now, at most one step of a session, whoever was served least first."""
        lines = {client: _eligible(line, now) for client, line in self._lines.items()}
        served = dict(self._served)
        while lines:
            client = min(lines, key=lambda each: served[each])
            if not lines[client]:
                del lines[client]
                continue
            job = lines[client].popleft()
            served[client] += job.num_tokens_left
            yield job

    def _take(self, job: StepJob | RequestJob, num_tokens: int) -> None:
        self._remove(job)
        self._served_last = max(self._served_last, self._served[job.client])
        self._served[job.client] += num_tokens

    def _remove(self, job: StepJob | RequestJob) -> None:
        line = self._lines[job.client]
        line.remove(job)
        if not line:
            del self._lines[job.client]

    def _drop_closed(self) -> None:
        for client, line in list(self._lines.items()):
            left = deque(job for job in line if not (isinstance(job, StepJob) and job.session.is_closed))
            if left:
                self._lines[client] = left
            else:
                del self._lines[client]


def _eligible(line: deque[StepJob | RequestJob], now: float) -> deque[StepJob | RequestJob]:
    """The first step of every session in a line, and all requests; not what waits for room."""
    seen: set[int] = set()
    found: deque[StepJob | RequestJob] = deque()
    for job in line:
        if isinstance(job, StepJob):
            if id(job.session) in seen:
                continue
            seen.add(id(job.session))
            if job.waits_until > now:
                continue
        found.append(job)
    return found


def _choose(steps: list[StepJob], num_tokens_max: int, num_sessions_max: int) -> list[Part]:
    """Parts of one batch; `steps` are in the order in which clients are served."""
    leader = steps[0]
    if leader.is_alone:
        return [Part(leader, leader.num_positions_left)]
    fitting = [job for job in steps if job.group == leader.group and not job.is_alone]
    decoding = [job for job in fitting if job.is_decoding]
    prompts = [job for job in fitting if not job.is_decoding]
    parts: list[Part] = []
    num_left = num_tokens_max
    # One place is left for a prompt: it would wait as long as there are many that decode.
    for job in decoding[: num_sessions_max - (1 if prompts and num_sessions_max > 1 else 0)]:
        if parts and job.num_tokens_left > num_left:
            break
        parts.append(Part(job, job.num_positions_left))
        num_left -= job.num_tokens_left
    num_left = max(num_left, int(PROMPT_SHARE_MIN * num_tokens_max))
    for job in prompts[: num_sessions_max - len(parts)]:
        num_positions = min(job.num_positions_left, num_left // job.num_rows)
        if num_positions < 1 and parts:
            break
        parts.append(Part(job, max(1, num_positions)))
        num_left -= parts[-1].num_tokens
    return parts
