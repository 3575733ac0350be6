"""On an accelerator: the same bits, the same sums and the same weights as on a processor."""

import pytest
import torch

from farflung.systems.onebyte.accumulator import Accumulators, write_tuned
from farflung.systems.onebyte.directions import draw_directions
from farflung.systems.onebyte.header import TensorShape
from farflung.systems.onebyte.randomness import GENERATORS
from farflung.systems.onebyte.records import Part, Round
from farflung.systems.onebyte.steps import step_of
from tests.onebyte_journals import bare_header, invented_codes

pytestmark = pytest.mark.gpu
TENSORS = TensorShape("matrix", (300, 200)), TensorShape("vector", (77,))


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("direction", ["rank1", "rademacher", "gaussian"])
def test_sums_are_those_of_a_processor(direction: str, generator: str) -> None:
    header = bare_header(*TENSORS, direction=direction, generator=generator, num_slots=128)
    rounds = [Round(number, 60, (Part(0, number, 0, invented_codes(number, 128)),)) for number in range(8)]
    steps = [step_of(header, record, part) for record in rounds for part in record.parts]
    here, there = Accumulators(header), Accumulators(header, device="cuda")
    here.add(steps)
    there.add(steps)
    assert here.digest() == there.digest()
    for tensor in TENSORS:
        drawn = draw_directions(header, tensor, 3, 1, 4, "cuda").entries(tensor.shape)
        assert torch.equal(drawn.cpu(), draw_directions(header, tensor, 3, 1, 4).entries(tensor.shape))
        for dtype in (torch.float32, torch.bfloat16):
            base = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
            expected, found = torch.empty_like(base), torch.empty_like(base, device="cuda")
            write_tuned(expected, base, [here.sums[tensor.name]], header.update_exponent)
            write_tuned(found, base.cuda(), [there.sums[tensor.name]], header.update_exponent)
            assert torch.equal(found.cpu(), expected)
