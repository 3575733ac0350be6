"""Choosing slots that are measured twice, comparing, and asking a third where two contradict each other."""

from collections.abc import Callable, Iterable

from farflung.systems.onebyte.audits import Audits, outvoted
from farflung.systems.onebyte.config import RoundsConfig
from farflung.systems.onebyte.rounds import Rounds
from farflung.systems.onebyte.seats import Seats


class Auditing:
    """Of one sequencer. Who is audited, and by whom, nobody else can foresee."""

    def __init__(self, config: RoundsConfig, draw: Callable[[int], int], rounds: Rounds, seats: Seats) -> None:
        self.audits = Audits(config.disagreements_max)
        self._share = config.audit_share
        self._draw = draw
        self._rounds = rounds
        self._seats = seats
        self._states: dict[int, dict[str, bytes]] = {}
        """By number of rounds and measurer: what it says that its accumulators are after them."""

    def choose(self, now: float) -> Iterable[tuple[str, list[int]]]:
        """Somebody and the slots of others that it measures too, in the round that begins."""
        names, slots = list(self._seats.current()), self._rounds.slots
        count = int(self._share * len(slots) + self._draw(1 << 20) / (1 << 20))
        if len(names) < 2 or count == 0:
            return
        auditor = names[self._draw(len(names))]
        choice = slots.held_by_others(auditor)
        if choice:
            first = self._draw(len(choice))
            yield auditor, slots.assign(auditor, choice[first : first + count], now)

    def compare(self, base_round: int, slots: Iterable[int]) -> list[tuple[str, str]]:
        """These slots have one measurement more; returns whom to ban, and why."""
        banned: dict[str, str] = {}
        for slot in slots:
            suspects = self._rounds.suspects(base_round, slot)
            for name in self.audits.judge(base_round, slot, suspects):
                banned[name] = f"{self.audits.num_refuted[name]} of its entries were refuted by two others"
        return list(banned.items())

    def referees(self, now: float) -> dict[str, list[int]]:
        """A third measurer for slots about which two contradict each other; without one the first counts."""
        found: dict[str, list[int]] = {}
        for slot in self._rounds.contradicted():
            slots = self._rounds.slots
            involved = {each.measurer for each in slots.measurements(slot)}
            if any(holder not in involved for holder in slots.holders(slot)):
                continue
            choice = [name for name in self._seats.current() if name not in involved]
            if not choice:
                self._rounds.leave_undecided(slot)
                continue
            referee = next(iter(found), None) or choice[self._draw(len(choice))]
            if referee not in choice:
                referee = choice[self._draw(len(choice))]
            found.setdefault(referee, []).extend(slots.assign(referee, [slot], now))
        return found

    def hear_state(self, key: str, end_round: int, state: bytes) -> list[str]:
        """What a measurer says that its accumulators are; returns those whose are not what most have."""
        states = self._states.setdefault(end_round, {})
        states[key] = state
        return outvoted(states)

    def forget_before(self, round_number: int) -> None:
        """Rounds that nobody can send entries for any more."""
        self.audits.forget_before(round_number)
        self._states = {end: states for end, states in self._states.items() if end >= round_number}
