"""One row of a plan: what a method comes to, and how rows are ranked (pure)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from farflung.apps.plan.fleet import Machine
from farflung.apps.plan.places import Bytes, between_sites
from farflung.apps.plan.plan_file import PlanFile
from farflung.apps.plan.words import Sentence, said

BUSY_SHARE = 0.85
"""Machines that compute for so much of the time are what takes the time;"""
FULL_SHARE = 0.5
"""otherwise a link that is so full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A method on some machines. Bytes, cost and energy are those of the whole job; of serving, those of an hour."""

    method: Sentence
    machines: tuple[Machine, ...]
    """Those that it needs."""
    seconds: float
    """Of the whole job; of serving, from a question to the end of its answer."""
    tokens_per_second: float
    """Of all machines together; of serving, what the slowest user sees."""
    meets: bool
    """Whether it reaches the goal."""
    sent: Bytes
    """From site to site, and within."""
    cost: float
    energy_kwh: float | None
    """None: nobody said what the machines draw."""
    limit: Sentence
    confidence: Sentence
    start: tuple[str, ...]
    """Lines to start with: a run file, or commands."""
    start_name: str = ""
    """Of the run file; empty: commands."""
    change: Sentence = field(default_factory=lambda: said("not tried"))
    """The one change that would help most."""
    busiest_link: tuple[str, str] | None = None
    """The two sites whose link is fullest."""

    @property
    def bytes_between_sites(self) -> float:
        return sum(between_sites(self.sent).values())


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something to try: the same on a plan with other links or machines."""

    method: Sentence
    try_on: Callable[[PlanFile], Outcome]
    """Raises ValueError where it cannot work, with the reason."""


def cost_of(plan: PlanFile, machines: Sequence[Machine], hours: float, sent: Bytes) -> float:
    """Of machines for some hours and of what crosses links."""
    links = sum(num_bytes / 1e9 * plan.link(*way).price_per_gb for way, num_bytes in between_sites(sent).items())
    return hours * sum(machine.price_per_hour for machine in machines) + links


def energy_of(machines: Sequence[Machine], hours: float) -> float | None:
    """Kilowatt hours; None where it is not said for all."""
    watts = [machine.watts for machine in machines]
    return hours * sum(one for one in watts if one is not None) / 1000 if None not in watts else None


def confidence_of(machines: Sequence[Machine], kind: str) -> Sentence:
    """By where speeds come from."""
    if all(machine.is_measured_for(kind) for machine in machines):
        return said("measured")
    return said("worked out" if all(machine.measured.flops is not None for machine in machines) else "looked up")


def ranked(outcomes: Sequence[Outcome], kind: str) -> list[Outcome]:
    """Best first. What meets the goal comes before what does not; then to serve cheaply, or to be done soon."""
    if kind == "serve":
        return sorted(
            outcomes,
            key=lambda one: (not one.meets, one.cost if one.meets else 0.0, -one.tokens_per_second, one.seconds),
        )
    return sorted(outcomes, key=lambda one: (not one.meets, one.seconds, one.cost))


def link_use(plan: PlanFile, sent: Mapping[tuple[str, str], float], seconds: float) -> dict[tuple[str, str], float]:
    """How full each direction of each link is, if `sent` crosses in `seconds`."""
    return {way: num / seconds / plan.link(*way).bytes_per_second for way, num in between_sites(dict(sent)).items()}


@dataclass(frozen=True, slots=True)
class Job:
    """What a whole run comes to that has an end."""

    seconds: float
    tokens: float
    """That are learned from, or sampled."""
    sent: Bytes
    busy_share: float
    """Of the time of those who set the pace, computing."""
    days_max: float | None = None
    """By when it is to be done."""
    busy: str = "limit busy"
    """What is said of them if they are busy."""


def job_outcome(plan: PlanFile, *, method: Sentence, machines: Sequence[Machine], job: Job, start: str) -> Outcome:
    """The row of a run; `start` is its file."""
    used = link_use(plan, job.sent, job.seconds)
    busiest = max(used, key=lambda way: used[way], default=None)
    hours = job.seconds / 3600
    return Outcome(
        method=method,
        machines=tuple(machines),
        seconds=job.seconds,
        tokens_per_second=job.tokens / job.seconds,
        meets=job.days_max is None or job.seconds <= job.days_max * 86400,
        sent=job.sent,
        cost=cost_of(plan, machines, hours, job.sent),
        energy_kwh=energy_of(machines, hours),
        limit=limit_of(job.busy_share, busiest, used, job.busy),
        confidence=confidence_of(machines, plan.kind),
        start=tuple(start.splitlines()),
        start_name="run.toml",
        busiest_link=busiest,
    )


def limit_of(
    busy_share: float, busiest: tuple[str, str] | None, used: dict[tuple[str, str], float], busy: str = "limit busy"
) -> Sentence:
    """What most of the time goes to."""
    if busy_share >= BUSY_SHARE:
        return said(busy, share=busy_share)
    if busiest is not None and used[busiest] >= FULL_SHARE:
        return said("limit link", one=busiest[0], other=busiest[1], used=min(1.0, used[busiest]), share=busy_share)
    return said("limit wait", share=busy_share)
