"""How a rollout node comes from the weights that it holds to newer ones: verified whole, swapped at once, tried out.

All of this runs on the compute door, so between two calls of `Policy.advance`. The new weights are put together beside
the old ones; until they are complete and their hash is right the policy knows nothing of them, and if the canary then
disagrees it gets the old ones back.
"""

from collections.abc import Callable, Sequence

from farflung.systems.alignment.deltas import NOTHING, Version, unpack_version
from farflung.systems.alignment.messages import Canary, Manifest
from farflung.systems.alignment.protocols import Policy
from farflung.wire.tensor import MalformedTensor


class CanaryDisagrees(Exception):
    """Weights of the right hash do not compute what they did at the trainer."""


def assemble(manifests: Sequence[Manifest], held: Version, chunk: Callable[[bytes], bytes]) -> Version:
    """The last version of a path that begins at `held` or at nothing.

    Raises:
        MalformedTensor: it does not lead there; nothing has changed.
    """
    version = NOTHING if manifests[0].is_anchor else held
    for manifest in manifests:
        version = unpack_version(manifest, version, chunk)
    return version


def install(policy: Policy, new: Version, old: Version, canary: Canary | None, tolerance: float) -> None:
    """Give a policy new weights, or leave it with the old ones.

    Raises:
        CanaryDisagrees: by how much; the old weights are in place again.
    """
    policy.install(new.number, new.weights_hash, new.tensors)
    if canary is None:
        return
    found = policy.score(canary.tokens)
    errors = [abs(mine - told) for mine, told in zip(found, canary.log_probabilities, strict=True)]
    if not max(errors) <= tolerance:
        if old.tensors:
            policy.install(old.number, old.weights_hash, old.tensors)
        raise CanaryDisagrees(
            f"version {new.number} gives the canary other log-probabilities here, by {max(errors):.3g} where "
            f"{tolerance:g} is allowed"
        )


def renew(
    policy: Policy, manifests: Sequence[Manifest], held: Version, chunk: Callable[[bytes], bytes], tolerance: float
) -> Version:
    """From the chunks to a policy that samples with the newest version; what is held then.

    Raises:
        MalformedTensor, CanaryDisagrees: the policy has its old weights, if it had any.
    """
    new = assemble(manifests, held, chunk)
    install(policy, new, held, manifests[-1].canary, tolerance)
    return new


RENEWAL_ERRORS = (MalformedTensor, CanaryDisagrees)
"""What makes a node keep its old version and say so."""
