"""Which order of a matrix is faster is asked of the processor, with a margin for noise."""

import pytest
import torch

from farflung.apps import speed
from farflung.apps.speed import is_faster_by_column


@pytest.mark.parametrize(("by_row_seconds", "is_chosen"), [(1.0, False), (1.1, False), (1.3, True), (0.5, False)])
def test_columns_are_chosen_only_where_they_are_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, by_row_seconds: float, is_chosen: bool
) -> None:
    monkeypatch.setattr(speed, "MATRIX_PROBE_BYTES", 1)
    read: set[tuple[int, ...]] = set()

    def seconds(matrices: list[torch.Tensor], token_B1H: torch.Tensor) -> float:
        read.add((*matrices[0].shape, *matrices[0].stride()))
        assert token_B1H.shape == (1, 1, 6)
        return by_row_seconds if matrices[0].is_contiguous() else 1.0

    monkeypatch.setattr(speed, "_matrix_seconds", seconds)
    is_faster_by_column.cache_clear()
    assert is_faster_by_column(4, 6) is is_chosen
    assert read == {(4, 6, 6, 1), (4, 6, 1, 4)}
    is_faster_by_column.cache_clear()
