"""What a replica remembers from round to round: agreed parameters, the outer rule's state, and codec residuals."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from farflung.learn.parameters import Tensors, assign_, copies
from farflung.systems.desync.replica import Replica

MOMENT = "moment/"


@dataclass(frozen=True, slots=True)
class ReplicaMemory:
    """Copies, in memory of their own."""

    tensors: Tensors
    """By path: parameters as of the last average, and what the outer rule keeps."""
    rule_steps: tuple[int, ...]
    residual: torch.Tensor
    """What lossy codecs have left out so far."""

    @classmethod
    def of(cls, replica: Replica) -> "ReplicaMemory":
        """What this replica remembers now."""
        agreed = replica.copy_agreed()
        return cls(agreed.tensors, agreed.rule_steps, replica.residual.clone())

    def restore(self, replica: Replica) -> None:
        """Let a new replica go on from here, with the parameters and moments that its learner has.

        Raises:
            ValueError: it is of another model, policy or layout.
        """
        own = {path: tensor for path, tensor in replica.tensors().items() if not path.startswith(MOMENT)}
        if {path: one.shape for path, one in own.items()} != {path: one.shape for path, one in self.tensors.items()}:
            raise ValueError(
                "this checkpoint of LowCommunication is of another model, outer rule or layout of the site: go on with "
                "the same code and as many ranks, or leave load_state_dict out to begin with fresh momentum"
            )
        parameters, learner = copies(replica.learner.parameters), replica.learner
        moments = {path: tensor for path, tensor in replica.tensors().items() if path.startswith(MOMENT)}
        state = replica.with_moments(None)
        replica.load(replace(state, tensors=self.tensors | moments, rule_steps=self.rule_steps))
        assign_(learner.parameters, parameters)
        if self.residual.shape == replica.residual.shape:  # another codec begins without one
            replica.residual.copy_(self.residual)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, for `torch.save`."""
        return {"tensors": self.tensors, "rule_steps": list(self.rule_steps), "residual": self.residual}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "ReplicaMemory":
        """Undo `state_dict`."""
        return cls(dict(state["tensors"]), tuple(state["rule_steps"]), state["residual"])
