"""Models of every family on disk, and their whole transformers originals to compare with, made when first asked for."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from farflung.model.source import ModelSource
from tests.families import save_family
from tests.model.local_blocks import LocalBlocks, load_chain


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two runs are compared to the last bit, and the machine is shared."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family -> the folder of its small model."""
    return functools.cache(lambda family: save_family(family, tmp_path_factory.mktemp("models") / family))


@pytest.fixture(scope="session")
def source_of(model_folder: Callable[[str], Path]) -> Callable[[str], ModelSource]:
    """Family -> its opened source."""
    return functools.cache(lambda family: ModelSource.open(str(model_folder(family))))


@pytest.fixture(scope="session")
def whole_model(model_folder: Callable[[str], Path]) -> Callable[[str], PreTrainedModel]:
    """Family -> the model as transformers loads it, its weights moved to memory aligned as ours is.

    A file's bytes are mapped unaligned, and alignment decides how matrix kernels group their sums: with it the same,
    results can be asked to be equal to the last bit.
    """

    def load(family: str) -> PreTrainedModel:
        model = AutoModelForCausalLM.from_pretrained(model_folder(family), dtype=torch.float32)
        for weight in model.parameters():
            weight.data = weight.data.clone()
        return model.eval().requires_grad_(False)

    return functools.cache(load)


@pytest.fixture(scope="session")
def chain_of(source_of: Callable[[str], ModelSource]) -> Callable[[str, int], LocalBlocks]:
    """Family and number of spans -> the whole model as a chain of that many."""
    return functools.cache(lambda family, num_spans: load_chain(source_of(family), num_spans))
