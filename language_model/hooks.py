"""Hooks: the places in a language model where activations are read, named as TransformerLens names them."""

import re
from typing import Literal, NamedTuple

Site = Literal["resid_post"]
"""Where in a layer: `resid_post` is the residual stream behind it. No other site is supported yet."""

_NAME = re.compile(r"blocks\.(0|[1-9][0-9]{0,3})\.hook_resid_post")


class Hook(NamedTuple):
    """One place in a language model."""

    layer: int
    """Decoder layer, from 0."""
    site: Site


def parse_hook(name: str) -> Hook:
    """The hook with a name: "blocks.2.hook_resid_post" -> Hook(layer=2, site="resid_post").

    Raises:
        ValueError: another kind of hook, or no hook at all.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"unknown hook: expected blocks.LAYER.hook_resid_post (the residual stream after a decoder layer, "
            f"as TransformerLens names it), got {name!r}"
        )
    return Hook(layer=int(match.group(1)), site="resid_post")


def check_hooks(hooks: tuple[str, ...], *, num_layers: int, model_name: str) -> None:
    """ValueError for a hook on a layer that the model does not have."""
    for name in hooks:
        if parse_hook(name).layer >= num_layers:
            raise ValueError(
                f"layer out of range: expected a hook on layers 0 to {num_layers - 1} of {model_name}, got {name!r}. "
                "Change harvest.hooks and train.hook in params.yaml"
            )
