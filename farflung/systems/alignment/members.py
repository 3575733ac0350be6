"""The workers as the hub knows them, and what a trainer without a batch waits for."""

from collections.abc import Mapping
from dataclasses import dataclass

from farflung.systems.alignment.config import AlignmentConfig
from farflung.systems.alignment.ledger import Ledger
from farflung.world.address import Address


@dataclass(slots=True)
class Member:
    """A worker as the hub knows it in this life."""

    address: Address
    heard_at: float
    version: int = -1
    answers_per_second: float = 0.0
    num_taken: int = 0
    num_refused: int = 0
    num_false: int = 0
    """Of those: answers that no honest worker of this run gives."""
    is_hungry: bool = False
    """It has room for more than there was to give."""
    trouble: str = ""
    """Why it holds an old version, if it said so."""


def why_waiting(members: Mapping[str, Member], ledger: Ledger, config: AlignmentConfig, now: float) -> tuple[str, str]:
    """What is waited for: a word for the account, and a sentence."""
    present = {name: member for name, member in members.items() if now - member.heard_at < config.silence_seconds}
    if not present:
        return "workers", "no worker is here"
    troubled = [f"{name}: {member.trouble}" for name, member in present.items() if member.trouble]
    if troubled:
        return "weights", f"workers lack the weights ({troubled[0]})"
    needed = ledger.version_needed(0)
    if all(member.version < needed for member in present.values()):
        return "weights", f"all workers are fetching version {needed}"
    return "sampling", f"{len(ledger.leases)} answers are being sampled by {len(present)} workers"
