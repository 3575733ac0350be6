"""LoRA adapters as users name them, `NAME=FOLDER`, and the models that they fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from farflung.model.peft_files import load_adapter
from farflung.model.source import ModelSource
from farflung.systems.swarm.adapters import NamedAdapter


@dataclass(frozen=True, slots=True)
class AdapterChoice:
    """An adapter that somebody wants served."""

    name: str
    folder: Path

    @staticmethod
    def parse(text: str) -> "AdapterChoice":
        """Read `NAME=FOLDER`. Raises ValueError for anything else."""
        name, equals, folder = text.partition("=")
        if not (name and equals and folder) or ":" in name:
            raise ValueError(f"--adapter {text} is not NAME=FOLDER: write, for example, --adapter poems=runs/poems")
        return AdapterChoice(name, Path(folder))


def fitting(choices: Sequence[AdapterChoice], sources: Sequence[ModelSource]) -> dict[str, dict[str, NamedAdapter]]:
    """By the model's name, the adapters that fit it, by their own.

    Raises:
        ValueError: two of one name, or one that cannot be read or fits none of the models.
    """
    found: dict[str, dict[str, NamedAdapter]] = {source.name: {} for source in sources}
    for choice in choices:
        if any(choice.name in adapters for adapters in found.values()):
            raise ValueError(f"two adapters are called {choice.name}: give each a name of its own")
        reasons: list[str] = []
        for source in sources:
            try:
                found[source.name][choice.name] = open_adapter(choice.folder, source)
            except ValueError as error:
                reasons.append(str(error))
        if len(reasons) == len(sources):
            raise ValueError(reasons[0])
    return found


def open_adapter(folder: Path, source: ModelSource) -> NamedAdapter:
    """An adapter as it is on disk. Raises ValueError as `load_adapter` does."""
    return NamedAdapter.of(load_adapter(folder, source).requires_grad_(False))
