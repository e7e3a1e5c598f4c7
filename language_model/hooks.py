"""Hooks: the places in a language model where activations are read, named as TransformerLens names them."""

import re
from typing import Final, Literal, NamedTuple, get_args

from language_model.families import Family

Site = Literal["resid_pre", "attn_out", "mlp_out", "resid_post"]
"""Where in a layer. The residual stream before it and behind it; what attention and the MLP add to it, behind the norms
that some families put there. In models that compute both from the same input (GPT-NeoX, Phi) as in all others,
resid_post = resid_pre + attn_out + mlp_out."""
SITES: Final[tuple[Site, ...]] = get_args(Site)

_NAME = re.compile(rf"blocks\.(0|[1-9][0-9]{{0,3}})\.hook_({'|'.join(SITES)})")


class Hook(NamedTuple):
    """One place in a language model."""

    layer: int
    """Decoder layer, from 0."""
    site: Site

    @property
    def num_layers_needed(self) -> int:
        """How many layers have to run before the activations are there."""
        # What enters a layer is what the layer before gives; the first one's input is seen when that layer runs.
        return max(1, self.layer) if self.site == "resid_pre" else self.layer + 1


def parse_hook(name: str) -> Hook:
    """The hook with a name: "blocks.2.hook_resid_post" -> Hook(layer=2, site="resid_post").

    Raises:
        ValueError: another kind of hook, or no hook at all.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"unknown hook: expected blocks.LAYER.hook_SITE with a SITE of {', '.join(SITES)}, as TransformerLens "
            f"names it, got {name!r}"
        )
    site: Site = match.group(2)  # type: ignore[assignment]
    return Hook(layer=int(match.group(1)), site=site)


def check_hooks(hooks: tuple[str, ...], *, num_layers: int, model_name: str) -> None:
    """ValueError for a hook on a layer that the model does not have."""
    for name in hooks:
        if parse_hook(name).layer >= num_layers:
            raise ValueError(
                f"layer out of range: expected a hook on layers 0 to {num_layers - 1} of {model_name}, got {name!r}. "
                "Change harvest.hooks and train.hook in params.yaml"
            )


def check_sites(hooks: tuple[str, ...], family: Family, *, model_name: str) -> None:
    """ValueError for a hook at a site that the model's layers do not have."""
    for name in hooks:
        site = parse_hook(name).site
        if (site == "attn_out" and family.attn_out is None) or (site == "mlp_out" and family.mlp_out is None):
            raise ValueError(
                f"expected a hook on resid_pre or resid_post of {model_name}, got {name!r}: no part of its layers "
                "gives what is added to the residual stream. Change harvest.hooks and train.hook in params.yaml"
            )
