"""How far harvested activations are from the plain model's and from TransformerLens's, by family and site.

    python benchmarks/agreement.py [--family gemma2 --family gpt_neox] [--json]

Random miniatures of every family (benchmarks/miniatures.py) and the embedded model, all layers, 6 sequences of 63
tokens. A figure is the largest difference, divided by the largest activation at the same hook; 0 is bit-equal.

same shape    ours against forward hooks on the plain model, the same batch, float32
other shape   ours one sequence at a time against the plain model in one batch of 6, float32
bf16 same     the first in bfloat16
bf16 other    the second in bfloat16: steps of the number format, 0.004 to 0.008, and what they grow to
lens          ours against TransformerLens's TransformerBridge, which computes attention step by step, float32
lens eager    the plain model computed step by step against TransformerBridge, float32
sum           resid_post against resid_pre + attn_out + mlp_out, float32
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from bench import finish, machine, table
from miniatures import BOS, VOCAB_SIZE, plain_activations, save_miniature
from torch import Tensor

from harvest.activations import hidden_states, load_cut_model
from language_model.checkpoint import model_family
from language_model.families import FAMILIES
from language_model.hooks import SITES, Site
from language_model.load import EMBEDDED, EMBEDDED_FOLDER, load_bridge, load_model
from language_model.structure import decoder_layers

COLUMNS = ("same shape", "other shape", "bf16 same", "bf16 other", "lens", "lens eager", "sum")


def main() -> None:
    """Parses the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--family", action="append", choices=(*FAMILIES, EMBEDDED), help="only this one; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    torch.set_num_threads(2)
    measured = {}
    for kind in options.family or (*FAMILIES, EMBEDDED):
        with tempfile.TemporaryDirectory() as folder:
            measured[kind] = measure(EMBEDDED_FOLDER if kind == EMBEDDED else save_miniature(Path(folder), kind))
    rows: list[tuple[object, ...]] = [
        (f"{kind}  {site}", *(f"{figures[column]:.1e}" if column in figures else "" for column in COLUMNS))
        for kind, sites in measured.items()
        for site, figures in sites.items()
    ]
    table(("family and site", *COLUMNS), rows)
    finish({"machine": machine("torch", "transformers", "transformer-lens"), "differences": measured}, options)


def sites_of(folder: Path) -> list[Site]:
    """The sites that the layers of a checkpoint have."""
    family = model_family(folder)
    missing = {"attn_out": family.attn_out is None, "mlp_out": family.mlp_out is None}
    return [site for site in SITES if not missing.get(site, False)]


def measure(folder: Path) -> dict[Site, dict[str, float]]:
    """Figures by site and column: the largest over the layers."""
    tokens = torch.randint(BOS + 1, VOCAB_SIZE - 1, (6, 63), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = BOS
    num_layers, sites = len(decoder_layers(load_model(folder, dtype=torch.float32, device="cpu"))), sites_of(folder)
    hooks = [f"blocks.{layer}.hook_{site}" for layer in range(num_layers) for site in sites]
    found: dict[str, dict[str, float]] = {}
    for dtype, prefix in ((torch.float32, ""), (torch.bfloat16, "bf16 ")):
        plain = plain_activations(load_model(folder, dtype=dtype, device="cpu"), tokens)
        model = load_cut_model(folder, hooks, dtype=dtype, device="cpu")
        ours = hidden_states(model, tokens)
        parts = [hidden_states(model, part) for part in tokens.split(1)]
        other = {hook: torch.cat([part[hook] for part in parts]) for hook in hooks}
        names = ("same shape", "other shape") if not prefix else ("bf16 same", "bf16 other")
        for name, states in zip(names, (ours, other), strict=True):
            found[name] = differences(states, plain)
        if not prefix:
            of_lens = lens(folder, tokens, hooks)
            eager = plain_activations(load_model(folder, dtype=dtype, device="cpu", attention="eager"), tokens)
            found |= {"lens": differences(ours, of_lens), "lens eager": differences(of_lens, eager)}
            if "attn_out" in sites:
                found["sum"] = differences(sums(ours), ours)
    return {
        site: {
            name: max(value for hook, value in figures.items() if hook.endswith(f"hook_{site}"))
            for name, figures in found.items()
            if any(hook.endswith(f"hook_{site}") for hook in figures)
        }
        for site in sites
    }


@torch.inference_mode()
def lens(folder: Path, tokens: Tensor, hooks: list[str]) -> dict[str, Tensor]:
    """TransformerLens's activations at the same names."""
    bridge = load_bridge(folder, dtype=torch.float32, device="cpu")
    _, cache = bridge.run_with_cache(tokens, names_filter=lambda name: name in hooks)
    return {hook: cache[hook] for hook in hooks}


def sums(states: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What resid_post of every layer should be."""
    parts: tuple[Site, ...] = ("resid_pre", "attn_out", "mlp_out")
    found = {}
    for hook in states:
        layer, site = hook.rsplit("hook_", 1)
        if site == "resid_post":
            found[hook] = torch.stack([states[f"{layer}hook_{part}"] for part in parts]).sum(dim=0)
    return found


def differences(states: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """By hook, the largest difference over the largest activation."""
    return {
        hook: float((found.float() - expected[hook].float()).abs().max() / expected[hook].float().abs().max())
        for hook, found in states.items()
    }


if __name__ == "__main__":
    main()
