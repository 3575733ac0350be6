"""When the trainer publishes its weights: after so many steps, or once the policy has moved too far."""

from farflung.systems.alignment.config import PublishConfig


def why_publish(num_steps: int, drift: float, num_pending: int, config: PublishConfig) -> str | None:
    """Why a version is due; None: it is not.

    `num_steps`, `drift`: since the last version, the drift as the learner measures it, summed over the steps.
    `num_pending`: answers that are being sampled, with that version or older ones.
    """
    if num_steps < 1:
        return None
    if num_steps >= config.steps_per_version:
        return f"{num_steps} steps were made"
    if config.drift_budget and drift * num_pending > config.drift_budget:
        return f"the policy has moved by {drift:.3g} and {num_pending} answers are being sampled without that"
    return None
