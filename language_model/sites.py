"""Activations at a site of a layer, read and replaced in a running model. B sequences, C context length, d d_model."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from language_model.families import Family
from language_model.hooks import Site

Visit = Callable[[Tensor], Tensor | None]
"""Is given activations (B, C, d); what it returns takes their place, unless it is None."""


def attach(layer: nn.Module, site: Site, family: Family, visit: Visit) -> RemovableHandle:
    """Calls `visit` whenever `layer` runs, until the handle is removed.

    Raises:
        ValueError: layers of this family have no such site.
    """
    if site == "resid_pre":
        return layer.register_forward_pre_hook(_before(visit), with_kwargs=True)
    part = {"resid_post": "", "attn_out": family.attn_out, "mlp_out": family.mlp_out}[site]
    if part is None:
        raise ValueError(f"expected resid_pre or resid_post in {type(layer).__name__}, got {site}. Choose another hook")
    return layer.get_submodule(part).register_forward_hook(_behind(visit))


def _before(visit: Visit) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]:
    """For layers that are given the residual stream as their first argument, by place or by name."""

    def before(_layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:  # noqa: ANN401
        if arguments:
            replaced = visit(arguments[0])
            return None if replaced is None else ((replaced, *arguments[1:]), keywords)
        replaced = visit(keywords["hidden_states"])
        return None if replaced is None else (arguments, keywords | {"hidden_states": replaced})

    return before


def _behind(visit: Visit) -> Callable[[nn.Module, Any, Any], Any]:
    """For modules that return activations, alone or as the first of several things."""

    def behind(_module: nn.Module, _arguments: Any, output: Any) -> Any:  # noqa: ANN401 - torch's signature
        if not isinstance(output, tuple):
            return visit(output)
        replaced = visit(output[0])
        return None if replaced is None else (replaced, *output[1:])

    return behind
