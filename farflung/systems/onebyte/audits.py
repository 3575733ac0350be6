"""Measuring again what somebody else has measured, and whom that refutes (pure).

Losses are floating-point numbers, so that honest machines of different kinds differ a little, and in small entries even
in the sign. So only large entries are compared. When two measurements of a slot contradict each other a third decides;
who stands alone against two that agree is refuted.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from farflung.systems.onebyte.code import CODE_MAX, SIGN_BIT, STEPS_PER_OCTAVE
from farflung.systems.onebyte.slots import Measured


def agree(one: int, other: int, reference: int, octaves: float) -> bool:
    """Whether two bytes can be honest measurements of one slot; `reference` is the code of a large entry."""
    sizes = one & CODE_MAX, other & CODE_MAX
    if max(sizes) < reference:
        return True
    is_near = abs(sizes[0] - sizes[1]) <= octaves * STEPS_PER_OCTAVE
    return is_near and one & SIGN_BIT == other & SIGN_BIT


def refuted(measured: Sequence[Measured], reference: int, octaves: float) -> list[str]:
    """Measurers that contradict at least two others who agree with each other."""

    def is_refuted(suspect: Measured) -> bool:
        against = [each for each in measured if not agree(suspect.code, each.code, reference, octaves)]
        return any(
            agree(one.code, other.code, reference, octaves)
            for number, one in enumerate(against)
            for other in against[number + 1 :]
        )

    return [each.measurer for each in measured if is_refuted(each)]


def outvoted(states: Mapping[str, bytes]) -> list[str]:
    """Measurers whose weights differ from those that most have, if at least two agree."""
    counts = Counter(states.values())
    (common, num_common), *others = counts.most_common()
    is_clear = num_common >= 2 and all(count < num_common for _, count in others)
    return [name for name, state in states.items() if state != common] if is_clear else []


@dataclass(slots=True)
class Audits:
    """What measuring again has shown of each measurer so far."""

    disagreements_max: int
    num_refuted: dict[str, int] = field(default_factory=dict[str, int])
    _judged: dict[tuple[int, int, str], None] = field(default_factory=dict[tuple[int, int, str], None])
    """(round, slot, measurer) of each refuted entry."""

    def judge(self, round_number: int, slot: int, suspects: Sequence[str]) -> list[str]:
        """Count refuted entries, each once; returns those who have had too many with this."""
        banned: list[str] = []
        for name in suspects:
            if (round_number, slot, name) in self._judged:
                continue
            self._judged[round_number, slot, name] = None
            self.num_refuted[name] = self.num_refuted.get(name, 0) + 1
            if self.num_refuted[name] == self.disagreements_max:
                banned.append(name)
        return banned

    def forget_before(self, round_number: int) -> None:
        """Rounds that nobody can send entries for any more."""
        self._judged = {key: None for key in self._judged if key[0] >= round_number}
