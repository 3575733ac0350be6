"""What a replica remembers from round to round: agreed parameters, the outer rule's state, and codec residuals."""

from dataclasses import dataclass
from typing import Any

import torch

from farflung.learn.parameters import Tensors, copies
from farflung.systems.desync.replica import Replica


@dataclass(frozen=True, slots=True)
class ReplicaMemory:
    """Copies, in memory of their own."""

    agreed: Tensors
    """Parameters as of the last average."""
    outer: dict[str, Tensors]
    """`momentum` ..."""
    outer_step: int
    residual: torch.Tensor
    """What lossy codecs have left out so far."""

    @classmethod
    def of(cls, replica: Replica) -> "ReplicaMemory":
        """What this replica remembers now."""
        outer = {name: copies(tensors) for name, tensors in replica.rule_state.tensors.items()}
        return cls(copies(replica.agreed), outer, replica.rule_state.step, replica.residual.clone())

    def restore(self, replica: Replica) -> None:
        """Let a new replica go on from here.

        Raises:
            ValueError: it is of another model, policy or number of lanes.
        """
        pairs = [(self.agreed, replica.agreed)]
        pairs += [(self.outer.get(name, {}), tensors) for name, tensors in replica.rule_state.tensors.items()]
        for saved, own in pairs:
            if {name: tensor.shape for name, tensor in saved.items()} != {name: one.shape for name, one in own.items()}:
                raise ValueError(
                    "this checkpoint of LowCommunication is of another model, outer rule or layout of the site: go on "
                    "with the same code and as many ranks, or leave load_state_dict out to begin with fresh momentum"
                )
            for name, tensor in own.items():
                tensor.copy_(saved[name])
        replica.rule_state.step = self.outer_step
        if self.residual.shape == replica.residual.shape:  # another codec begins without one
            replica.residual.copy_(self.residual)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, for `torch.save`."""
        return {
            "agreed": self.agreed,
            "outer": self.outer,
            "outer_step": self.outer_step,
            "residual": self.residual,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "ReplicaMemory":
        """Undo `state_dict`."""
        return cls(state["agreed"], state["outer"], state["outer_step"], state["residual"])
