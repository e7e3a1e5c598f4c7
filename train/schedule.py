"""What changes over a run as pure functions of the step, 0-based."""


def lr_factor(step: int, *, num_steps: int, warm_up_fraction: float, decay_fraction: float) -> float:
    """What the learning rate is multiplied with at `step`, in (0, 1].

    With W = round(warm_up_fraction * num_steps) and E = round(decay_fraction * num_steps): (step + 1) / W in the first
    W steps, (num_steps - step) / E in the last E, 1 between. No step has rate 0.
    """
    decay_steps = round(decay_fraction * num_steps)
    falling = (num_steps - step) / decay_steps if step >= num_steps - decay_steps else 1.0
    return min(warm_up_factor(step, num_steps=num_steps, fraction=warm_up_fraction), falling)


def warm_up_factor(step: int, *, num_steps: int, fraction: float) -> float:
    """(step + 1) / W in the first W = round(fraction * num_steps) steps, then 1."""
    warm_up_steps = round(fraction * num_steps)
    return (step + 1) / warm_up_steps if step < warm_up_steps else 1.0
