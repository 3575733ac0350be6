"""One small model for the tests of the swarm's parts."""

import pytest
import torch

from farflung.model.span import Span
from tests.swarms import SmallModel


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    torch.set_num_threads(1)
    return SmallModel.make("llama", tmp_path_factory.mktemp("models"))


@pytest.fixture
def span(small: SmallModel) -> Span:
    return small.span(0, 4)
