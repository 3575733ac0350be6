"""Replay: the weights that a journal stands for, made from the base model and the journal alone, tensor by tensor."""

from collections.abc import Callable, Mapping, Sequence

import torch

from farflung.learn.parameters import fingerprint
from farflung.systems.onebyte.accumulator import Accumulators, state_digest, sums_digest, write_tuned
from farflung.systems.onebyte.header import Header, TensorShape
from farflung.systems.onebyte.journal import JournalSection
from farflung.systems.onebyte.means import section_means
from farflung.systems.onebyte.steps import Step, step_of


def steps_of(section: JournalSection) -> list[Step]:
    """What counts in a run: neither skipped nor revoked."""
    if section.header.shared_slots is not None:
        return section_means(section)
    return [step_of(section.header, record, part) for record, part in section.counted()]


def replay(
    sections: Sequence[JournalSection],
    parameters: Mapping[str, torch.Tensor],
    on_tensor: Callable[[str], object] = lambda name: None,
) -> bytes:
    """Turn the base model's parameters (its own tensors, all of them) into the tuned ones; the digest of the sums.

    Beside the model only one tensor's sums are in memory. `on_tensor` hears which tensor is done.

    Raises:
        ValueError: these are not the base model's parameters; nothing has been changed then.
    """
    header = sections[0].header
    require_base(header, parameters)
    steps = [steps_of(section) for section in sections]
    digests: dict[str, bytes] = {}
    for name in tensor_names(sections):
        sums = {
            number: sums_of(section, name, steps[number])
            for number, section in enumerate(sections)
            if name in _shapes(section.header)
        }
        tensor = parameters[name].detach()
        write_tuned(tensor, tensor, list(sums.values()), header.update_exponent)
        for number, found in sums.items():
            digests[f"{number:06} {name}"] = sums_digest(_shapes(sections[number].header)[name], found)
        on_tensor(name)
    return state_digest(digests)


def sums_of(section: JournalSection, name: str, steps: Sequence[Step]) -> torch.Tensor:
    """One tensor's sum of steps, int32, in units of 2^-update_exponent."""
    accumulators = Accumulators(section.header, [_shapes(section.header)[name]])
    accumulators.add(steps)
    return accumulators.sums[name]


def tensor_names(sections: Sequence[JournalSection]) -> list[str]:
    """The tensors that any of the runs tunes, in order."""
    return list(dict.fromkeys(tensor.name for section in sections for tensor in section.header.tensors))


def _shapes(header: Header) -> dict[str, TensorShape]:
    return {tensor.name: tensor for tensor in header.tensors}


def require_base(header: Header, parameters: Mapping[str, torch.Tensor]) -> None:
    """Refuse a model that is not the one a journal was written over.

    Raises:
        ValueError: says how it differs.
    """
    for tensor in header.tensors:
        found = parameters.get(tensor.name)
        if found is None or tuple(found.shape) != tensor.shape:
            form = "this model has no such tensor" if found is None else f"here {list(found.shape)}"
            raise ValueError(
                f"this is not the base model of the journal, which is {header.base_name}: {tensor.name} has shape "
                f"{list(tensor.shape)} there, and {form}"
            )
    digest = fingerprint(parameters)
    if digest != header.base:
        raise ValueError(
            f"this is not the base model of the journal, which is {header.base_name}: the weights here have the hash "
            f"{digest.hex()[:16]} (in {header.dtype}), and the journal was written over {header.base.hex()[:16]}"
        )
