"""The small model that chaos is made with."""

import pytest
import torch

from tests.swarms import SmallModel


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    """A small Llama on disk, whole and in spans; one thread, so that runs repeat to the last bit."""
    torch.set_num_threads(1)
    return SmallModel.make("llama", tmp_path_factory.mktemp("models"))
