"""What one can set on each baseline: [method] of a run file."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MezoSettings:
    """[method] of name = "mezo"."""

    learning_rate: float = 1e-6
    epsilon: float = 1e-3
    num_directions: int = 1
    """Directions of a step, of which the mean is taken (n-SPSA)."""

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and self.epsilon > 0 and self.num_directions >= 1):
            raise ValueError("method: learning_rate and epsilon must be above 0, and num_directions at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamSettings:
    """[method] of name = "adam"."""

    learning_rate: float = 1e-5
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    """Longest gradient; 0: any."""

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and 0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError("method: learning_rate must be above 0, and beta1 and beta2 at least 0 and below 1")
        if self.weight_decay < 0 or self.clip_norm < 0:
            raise ValueError("method: weight_decay and clip_norm must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAvgLoraSettings:
    """[method] of name = "fedavg-lora"."""

    num_clients: int = 4
    local_steps: int = 10
    """Steps of each client in a round."""
    rank: int = 8
    alpha: int = 16
    """The adapter's product counts alpha / rank."""
    learning_rate: float = 1e-4
    """Of the clients' Adam, which begins anew in every round."""

    def __post_init__(self) -> None:
        if min(self.num_clients, self.local_steps, self.rank, self.alpha) < 1:
            raise ValueError("method: num_clients, local_steps, rank and alpha must be at least 1")

    @property
    def optimizer(self) -> AdamSettings:
        """A client's."""
        return AdamSettings(learning_rate=self.learning_rate)
