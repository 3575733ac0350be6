"""Adapters as users name them: which models they fit, and one sentence where they do not."""

from pathlib import Path

import pytest

from farflung.apps.adapters import AdapterChoice, fitting, open_adapter
from farflung.model.peft_files import save_adapter
from farflung.model.source import ModelSource
from tests.families import save_family
from tests.loras import lora


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[ModelSource]:
    folder = tmp_path_factory.mktemp("models")
    return [ModelSource.open(str(save_family(family, folder / family))) for family in ("llama", "gpt2")]


def test_each_adapter_goes_to_the_models_that_it_fits(sources: list[ModelSource], tmp_path: Path) -> None:
    for source in sources:
        save_adapter(lora(source), tmp_path / source.name)
    choices = [AdapterChoice.parse(f"{name}={tmp_path / folder}") for name, folder in (("a", "llama"), ("b", "gpt2"))]
    found = fitting(choices, sources)
    assert {name: list(adapters) for name, adapters in found.items()} == {"llama": ["a"], "gpt2": ["b"]}
    assert found["llama"]["a"].name == open_adapter(tmp_path / "llama", sources[0]).name
    assert not found["llama"]["a"].is_passing
    with pytest.raises(ValueError, match="two adapters are called a"):
        fitting([choices[0], choices[0]], sources)
    with pytest.raises(ValueError, match="blocks of gpt2"):
        fitting(choices[:1], sources[1:])


@pytest.mark.parametrize("text", ["", "poems", "=poems", "poems=", "a:b=poems"])
def test_what_is_not_a_name_and_a_folder_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not NAME=FOLDER"):
        AdapterChoice.parse(text)
