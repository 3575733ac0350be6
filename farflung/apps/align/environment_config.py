"""[environment] of a run file; `environments` opens it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["addition", "function", "reasoning_gym", "gymnasium", "verifiers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentConfig:
    """What prompts come from and what answers are worth."""

    kind: Kind = "addition"
    name: str = ""
    """Of reasoning-gym: the task; of gymnasium: the id; of verifiers: `module:load_environment`."""
    problems: str = ""
    """Of function: a file of JSON lines with "prompt", or a function that makes problem i of a number."""
    reward: str = ""
    """Of function: reward(answer, problem) -> number."""
    parse: str = ""
    """Of gymnasium: from the policy's text to an action; empty: the number of a discrete action."""
    show: str = ""
    """Of gymnasium: from an observation to text; empty: as Python prints it."""
    system: str = ""
    """A system prompt, where the tokenizer has a chat template."""
    size: int = 10_000
    """Of reasoning-gym: problems that are made."""
    seed: int = 0
    """Of what generates problems; another one gives other problems, as for evaluation."""
    turns_max: int = 8
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Handed on to whoever makes it."""
