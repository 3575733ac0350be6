"""Faults as sentences: `Faults().crash("server-3", at=40).partition("eu", "us", during=(60, 90))`.

Times are virtual seconds. A crash may also wait for a moment in the life of a message, so that a test can kill a server
exactly when the third message of a kind reaches it: `crash("server-2", when=nth("Forward", 3, "deliver"))`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from farflung.sim.station import MessageEvent

During = tuple[float, float]
When = Callable[[MessageEvent], bool]


class Stage(Protocol):
    """What faults need of a simulation."""

    def at(self, time: float, action: Callable[[], None]) -> None: ...
    def watch(self, watcher: Callable[[MessageEvent], None]) -> None: ...
    def now(self) -> float: ...
    def crash(self, node: str, *, is_silent: bool = False) -> None: ...
    def restart(self, node: str) -> None: ...
    def freeze(self, node: str) -> None: ...
    def thaw(self, node: str) -> None: ...
    def cut(self, groups: dict[str, int]) -> None: ...
    def heal(self, groups: dict[str, int]) -> None: ...
    def slow(self, node: str, factor: float) -> None: ...
    def lose(self, rate: float) -> None: ...
    def duplicate(self, rate: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Fault:
    """One sentence: what it says, and how it comes about on a stage."""

    sentence: str
    arrange: Callable[[Stage], None]


def nth(
    kind: str,
    number: int,
    phase: str,
    *,
    source: str | None = None,
    target: str | None = None,
    target_actor: str | None = None,
) -> When:
    """True at the `number`-th (from 1) moment `phase` of a message of class `kind` between the nodes given."""
    count = 0

    def happens(event: MessageEvent) -> bool:
        nonlocal count
        is_one = (
            (event.kind, event.phase) == (kind, phase)
            and source in (None, event.source)
            and target in (None, event.target)
            and target_actor in (None, event.target_actor)
        )
        count += is_one
        return is_one and count == number

    return happens


@dataclass
class Faults:
    """A list of sentences; each method adds one and returns the list."""

    sentences: list[Fault] = field(default_factory=list[Fault])

    def _add(self, sentence: str, arrange: Callable[[Stage], None]) -> Faults:
        self.sentences.append(Fault(sentence, arrange))
        return self

    def crash(
        self,
        node: str,
        *,
        at: float | None = None,
        when: When | None = None,
        restart_after: float | None = None,
        is_silent: bool = False,
    ) -> Faults:
        """Kill the node's process at a time, or at the first moment of a message for which `when` is true.

        A message at whose "send" its sender dies never leaves; at whose "deliver" its receiver dies is never seen.
        `is_silent`: the machine loses power, so that its peers only notice the silence.
        """
        if (at is None) == (when is None):
            raise ValueError("A crash happens either at a time or when a message does something: give at or when.")

        def strike(stage: Stage) -> None:
            stage.crash(node, is_silent=is_silent)
            if restart_after is not None:
                stage.at(stage.now() + restart_after, lambda: stage.restart(node))

        def arrange(stage: Stage) -> None:
            if at is not None:
                stage.at(at, lambda: strike(stage))
            if when is not None:
                stage.watch(_once(when, lambda: strike(stage)))

        moment = f"at {at:g} s" if at is not None else "at a message"
        back = f", restarts {restart_after:g} s later" if restart_after is not None else ""
        return self._add(f"{node} {'loses power' if is_silent else 'crashes'} {moment}{back}", arrange)

    def restart(self, node: str, *, at: float) -> Faults:
        """Boot the node again, with its disk and nothing else."""
        return self._add(f"{node} restarts at {at:g} s", lambda stage: stage.at(at, lambda: stage.restart(node)))

    def freeze(self, node: str, *, during: During) -> Faults:
        """Stop the node's process without ending it (as SIGSTOP does)."""
        return self._span(f"{node} is frozen", during, lambda stage: stage.freeze(node), lambda stage: stage.thaw(node))

    def partition(self, *groups: str | Sequence[str], during: During) -> Faults:
        """Cut groups of sites and nodes off from each other; places in no group reach everybody."""
        numbered = {
            place: number
            for number, group in enumerate(groups)
            for place in ([group] if isinstance(group, str) else group)
        }
        if len(groups) < 2:
            raise ValueError("A partition needs at least two groups.")
        names = " from ".join(group if isinstance(group, str) else "+".join(group) for group in groups)
        return self._span(
            f"{names} is cut off", during, lambda stage: stage.cut(numbered), lambda stage: stage.heal(numbered)
        )

    def slow(self, node: str, *, factor: float, during: During) -> Faults:
        """Let the node's jobs take `factor` times as long."""
        return self._span(
            f"{node} is {factor:g} times slower",
            during,
            lambda stage: stage.slow(node, factor),
            lambda stage: stage.slow(node, 1 / factor),
        )

    def lose(self, rate: float, *, during: During) -> Faults:
        """Lose that share of all messages, beside what the links lose."""
        return self._span(
            f"{rate:.1%} of messages are lost",
            during,
            lambda stage: stage.lose(rate),
            lambda stage: stage.lose(-rate),
        )

    def duplicate(self, rate: float, *, during: During) -> Faults:
        """Deliver that share of all messages twice."""
        return self._span(
            f"{rate:.1%} of messages arrive twice",
            during,
            lambda stage: stage.duplicate(rate),
            lambda stage: stage.duplicate(-rate),
        )

    def on_message(self, when: When, action: Callable[[], None]) -> Faults:
        """Do anything at the first moment of a message for which `when` is true."""
        return self._add("something happens at a message", lambda stage: stage.watch(_once(when, action)))

    def _span(
        self, sentence: str, during: During, begin: Callable[[Stage], None], end: Callable[[Stage], None]
    ) -> Faults:
        first, last = during
        if not 0 <= first < last:
            raise ValueError(f"A fault lasts from a time to a later one, not during {during}.")

        def arrange(stage: Stage) -> None:
            stage.at(first, lambda: begin(stage))
            stage.at(last, lambda: end(stage))

        return self._add(f"{sentence} from {first:g} to {last:g} s", arrange)

    def __str__(self) -> str:
        return "; ".join(fault.sentence for fault in self.sentences) or "no faults"

    @classmethod
    def random(
        cls,
        seed: int,
        nodes: Sequence[str],
        *,
        until: float,
        num_faults: int = 6,
        loss: float = 0.03,
        sites: Sequence[str] = (),
    ) -> Faults:
        """`num_faults` faults on `nodes` between 0 and `until` seconds, and loss throughout.

        Every crashed node is back, every freeze and partition over by `until`.
        """
        random = Random(f"{seed}:faults")
        faults = cls()
        if loss:
            faults.lose(loss, during=(0, until))
        for _ in range(num_faults):
            node = random.choice(nodes)
            first, last = sorted(round(random.uniform(0, until), 3) for _ in range(2))
            last = max(last, first + 0.001)
            match random.choice(["crash", "crash", "power", "freeze", "slow", *(["partition"] if sites else [])]):
                case "crash":
                    faults.crash(node, at=first).restart(node, at=last)
                case "power":
                    faults.crash(node, at=first, is_silent=True).restart(node, at=last)
                case "freeze":
                    faults.freeze(node, during=(first, last))
                case "slow":
                    faults.slow(node, factor=random.choice([2.0, 10.0]), during=(first, last))
                case _:
                    faults.partition(random.choice(sites), node, during=(first, last))
        return faults


def _once(when: When, action: Callable[[], None]) -> Callable[[MessageEvent], None]:
    is_due = True

    def watcher(event: MessageEvent) -> None:
        nonlocal is_due
        if is_due and when(event):
            is_due = False
            action()

    return watcher
