"""Names of the places in a language model where activations are read."""

import re

_RESIDUAL = re.compile(r"blocks\.(0|[1-9][0-9]{0,3})\.hook_resid_post")


def hook_layer(hook: str) -> int:
    """The 0-based decoder layer whose output a hook names: "blocks.2.hook_resid_post" -> 2.

    Raises:
        ValueError: another kind of hook, or no hook at all.
    """
    match = _RESIDUAL.fullmatch(hook)
    if match is None:
        raise ValueError(
            f"unknown hook: expected blocks.LAYER.hook_resid_post (the residual stream after a decoder layer, "
            f"as TransformerLens names it), got {hook!r}"
        )
    return int(match.group(1))


def check_hooks(hooks: tuple[str, ...], *, num_layers: int, model_name: str) -> None:
    """Refuses hooks on layers that the model does not have."""
    for hook in hooks:
        if hook_layer(hook) >= num_layers:
            raise ValueError(
                f"layer out of range: expected a hook on layers 0 to {num_layers - 1} of {model_name}, got {hook!r}. "
                "Change harvest.hooks and train.hook in params.yaml"
            )
