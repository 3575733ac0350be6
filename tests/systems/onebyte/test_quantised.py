"""Base weights as codes: what they stand for is frozen, tuning over them is tuning over floats, to the bit."""

import hashlib

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from farflung.learn.parameters import fingerprint
from farflung.systems.onebyte.header import Header, decode_header, encode_header, schedule_of
from farflung.systems.onebyte.learner import ModelLearner
from farflung.systems.onebyte.measure import Measurer
from farflung.systems.onebyte.objective import Batch, NextTokenLoss
from farflung.systems.onebyte.quantised import (
    QUANTISATIONS,
    BaseWeights,
    Quantisation,
    dequantised,
    quantise_,
    quantised,
    quantised_layers,
    round_to_quantised_,
)
from farflung.systems.onebyte.records import Part, Round
from farflung.systems.onebyte.replay import require_base
from farflung.systems.onebyte.steps import step_of
from tests.onebyte_journals import header_for, invented_codes, tiny_model

FORMS: tuple[Quantisation, ...] = ("int8", "nf4")
NUM_SLOTS = 8


def header(model: nn.Module, quantisation: Quantisation) -> Header:
    schedule = schedule_of(0.02, num_slots=NUM_SLOTS, exponent=24)
    return header_for(
        model, num_slots=NUM_SLOTS, epsilon=2e-3, exponent=24, schedule=schedule, quantisation=quantisation
    )


def floats(quantisation: Quantisation) -> LlamaForCausalLM:
    model = tiny_model()
    round_to_quantised_(model, quantisation)
    return model


def codes(quantisation: Quantisation) -> LlamaForCausalLM:
    model = tiny_model()
    quantise_(model, quantisation)
    return model


def data_of(round_number: int) -> Batch:
    starts = torch.randint(0, 97, (4, 1), generator=torch.Generator().manual_seed(round_number))
    return {"input_ids": (starts + 3 * torch.arange(8)) % 97}


KNOWN = {"int8": "c0514dc8", "nf4": "0d5b7221"}


@pytest.mark.parametrize("form", FORMS)
def test_what_codes_stand_for_is_frozen(form: Quantisation) -> None:
    weight = (torch.arange(12 * 40).view(12, 40) * 7919 % 1009 - 504) / 512
    values = dequantised(*quantised(weight, form), weight.shape, form)
    assert hashlib.sha256(values.numpy().tobytes()).hexdigest()[:8] == KNOWN[form]
    again = dequantised(*quantised(values, form), weight.shape, form)
    torch.testing.assert_close(again, values, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("form", "step"), [("int8", 0.5 / 127), ("nf4", 0.16)])
def test_values_are_near_and_zeros_stay(form: Quantisation, step: float) -> None:
    weight = torch.randn(30, 50, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    packed, scales = quantised(weight, form)
    values = dequantised(packed, scales, weight.shape, form)
    assert (values - weight).abs().max() <= step * weight.abs().max() and not values[3].any()
    assert packed.numel() * packed.element_size() <= (weight.numel() + 64) * (1 if form == "int8" else 0.5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("patterns", [["all"], ["attention"], ["norm", "embedding"]])
def test_measuring_on_codes_is_measuring_on_floats(form: Quantisation, patterns: list[str]) -> None:
    of = header_for(floats(form), patterns, epsilon=2e-3, quantisation=form)
    packed = codes(form)
    before = {name: tensor.clone() for name, tensor in packed.state_dict().items()}
    found = Measurer(of, packed, NextTokenLoss(), num_directions=4).differences(data_of(0), 0, range(6))
    expected = Measurer(of, floats(form), NextTokenLoss(), num_directions=4).differences(data_of(0), 0, range(6))
    assert expected.abs().max() > 1e-3 and torch.equal(found, expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in packed.state_dict().items())


@pytest.mark.parametrize("form", FORMS)
def test_a_tune_of_codes_is_the_tune_of_what_they_stand_for(form: Quantisation) -> None:
    of = header(floats(form), form)
    models = (codes(form), floats(form))
    learners = [ModelLearner(of, model, NextTokenLoss(), data_of, num_directions=8) for model in models]
    for number in range(4):
        measured = [learner.measure(number, 0, NUM_SLOTS) for learner in learners]
        assert measured[0] == measured[1]
        record = Round(number, 60, (Part(0, number, 0, invented_codes(number, NUM_SLOTS)),))
        for learner in learners:
            learner.add([step_of(of, record, part) for part in record.parts])
    for learner in learners:
        learner.refresh()
    plain = dict(models[1].named_parameters())
    base = dict(floats(form).named_parameters())
    layers = quantised_layers(models[0])
    assert len(layers) == 14
    for name, layer in layers.items():
        assert torch.equal(layer.tuned(), plain[name]) and not torch.equal(plain[name], base[name])
    for name, parameter in models[0].named_parameters():
        assert name in layers or torch.equal(parameter, plain[name])
    assert len({learner.digest() for learner in learners}) == 1


@pytest.mark.parametrize("form", FORMS)
def test_the_hash_of_the_base_is_that_of_what_codes_stand_for(form: Quantisation) -> None:
    of = header(floats(form), form)
    require_base(of, BaseWeights(codes(form)))
    assert fingerprint(BaseWeights(codes(form))) == fingerprint(dict(floats(form).named_parameters())) == of.base
    with pytest.raises(ValueError, match="not the base model of the journal"):
        require_base(of, dict(tiny_model().named_parameters()))
    assert decode_header(encode_header(of)) == of and of.quantised_as == form
    assert header_for(tiny_model()).quantised_as == "" and b"quantisation" not in encode_header(
        header_for(tiny_model())
    )


def test_what_cannot_be_is_refused() -> None:
    assert set(QUANTISATIONS) == set(FORMS)
    with pytest.raises(ValueError, match="weights that are codes have no gradient"):
        ModelLearner(header(floats("nf4"), "nf4"), codes("nf4"), NextTokenLoss(), data_of, is_exact=True)
    with pytest.raises(ValueError, match="leave quantisation out"):
        quantise_(nn.Sequential(nn.Embedding(3, 4)), "int8")
