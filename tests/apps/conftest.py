"""One tiny model on disk and one real server over it, for all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tests.apps.processes import tiny_server
from tests.apps.tiny import save_tiny_model
from tests.apps.tool_model import save_tool_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in Hugging Face format, with a context long enough for an answer that takes a while."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny"), context_length_max=20_000)


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_folder)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture(scope="session")
def tool_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt to call a tool."""
    return save_tool_model(tmp_path_factory.mktemp("tools"))


@pytest.fixture(scope="session")
def api_url(tiny_folder: Path, tool_folder: Path) -> Iterator[str]:
    """An open server, on which streams go on for ten minutes without a listener."""
    with tiny_server(tiny_folder, "--resume-seconds", "600", "--tools", str(tool_folder)) as url:
        yield url


@pytest.fixture(scope="session")
def keyed_url(tiny_folder: Path) -> Iterator[str]:
    """A server with two keys, on which a stream that nobody listens to rests at once."""
    with tiny_server(tiny_folder, "--key", "first-key", "--key", "second-key", "--resume-seconds", "0.1") as url:
        yield url


@pytest.fixture(scope="session")
def client(api_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{api_url}/v1", api_key="none", max_retries=0, timeout=240) as client:
        yield client
