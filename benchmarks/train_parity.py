"""Quality of our SAEs against SAELens's, trained on the same rows from the same weights with the same settings.

    python benchmarks/train_parity.py [--cache DIR | --input ROWS.npy] [--seeds 3 --steps 700 --threads 2] [--json]

Two kinds: SAELens's standard training SAE (decoder lengths free, L1 weighted by them) beside our relu with decoder_norm
free, and batchtopk with AuxK. For each seed both start from the same random decoder and encoder and see the same
batches in the same order; gradients are clipped to length 1, as SAELens does. Both are measured on held-back batches,
in the form in which they are saved: explained variance and L0. Parity: the mean over seeds differs by no more than the
spread (largest minus smallest) over SAELens's own seeds.

The threshold of a saved batchtopk SAE is a running mean, and training does not depend on it. SAELens's rate is 0.01;
ours is higher in runs of less than 1000 steps (train/steps/topk.py). So batchtopk is compared twice: at SAELens's rate,
which decides on parity, and at ours, which shows what the rate changes. k is what L0 should be.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench_rows import machine, open_cache, settings_of
from torch import Tensor

from store.read.cache import ActivationCache
from store.sae.weights import decode, encode
from train.config import VariantSettings
from train.group import VariantGroup, make_group
from train.steps.input import activation_scale, load_batch
from train.steps.make import make_step
from train.steps.topk import THRESHOLD_RATE, threshold_rate

MEASURES = ("explained_variance", "l0")
K, L1, LR = 32, 1.5, 1e-3


def main() -> None:
    """Parses the command line, trains, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="an activation cache; data/activations unless --input is given")
    parser.add_argument("--input", type=Path, metavar="ROWS.npy", help="uint16 (rows, d_model) bfloat16 bit patterns")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--batch-rows", type=int, default=1024)
    parser.add_argument("--factor", type=int, default=2, help="F / d_model")
    parser.add_argument("--held-back", type=int, default=20, help="batches to measure on")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {"machine": machine("cpu"), "steps": options.steps, "seeds": options.seeds}
    print("  ".join(f"{name} {value}" for name, value in result["machine"].items()))
    print(f"k {K}; rate of the threshold: SAELens {THRESHOLD_RATE}, ours {threshold_rate(options.steps):.4f}")
    with tempfile.TemporaryDirectory() as scratch:
        cache, hook = open_cache(options.cache, options.input, Path(scratch) / "cache")
        rows = Rows(cache, hook, options)
        print(f"{'kind':<22}{'measure':<20}{'ours':>24}{'SAELens':>24}{'difference':>12}{'spread':>10}")
        result["kinds"] = {kind: compare(kind, rows, options) for kind in ("relu", "batchtopk")}
    result["parity"] = all(
        measure["within_spread"] for kind in result["kinds"].values() for measure in kind["measures"].values()
    )
    print("parity" if result["parity"] else "NO parity")
    if options.json:
        print(json.dumps(result, sort_keys=True))


class Rows:
    """Batches of the store in memory: those to train on, then those to measure on."""

    def __init__(self, cache: ActivationCache, hook: str, options: argparse.Namespace) -> None:
        moments = cache.manifest.moments[hook]
        self.mean, self.d_model = list(moments.mean), len(moments.mean)
        self.scale = activation_scale(d_model=self.d_model, mean_squared_norm=moments.mean_squared_norm)
        needed = options.steps + options.held_back
        available = cache.manifest.num_rows // options.batch_rows
        if needed > available:
            raise SystemExit(f"expected {needed} batches in the cache, got {available}. Lower --steps or --batch-rows")
        with cache.batches(hook, batch_rows=options.batch_rows, seed=0, num_epochs=1) as stream:
            every = [next(stream).copy() for _ in range(needed)]
        self.train, held_back = every[: options.steps], every[options.steps :]
        self.measured = torch.cat([self.scaled(bits) for bits in held_back])

    def scaled(self, bits: Any) -> Tensor:  # noqa: ANN401 - an array of the store
        """Rows (B, d) as both trainers see them."""
        out = torch.empty(self.d_model, len(bits))
        load_batch(bits, scale=self.scale, out_DB=out)
        return out.t().contiguous()

    def judge(self, latents: Tensor, reconstruction: Tensor) -> dict[str, float]:
        """Explained variance and L0 on the held-back rows."""
        x = self.measured
        unexplained = (x - reconstruction).square().sum() / (x - x.mean(dim=0)).square().sum()
        return {"explained_variance": 1.0 - float(unexplained), "l0": float((latents > 0).sum(dim=1).float().mean())}


def settings_for(kind: str, rows: Rows, options: argparse.Namespace) -> list[VariantSettings]:
    """One variant per seed, with SAELens's habits."""
    auxk = {"kind": "auxk", "k": rows.d_model // 2, "coefficient": 1.0}
    shared: dict[str, Any] = {
        "d_sae": options.factor * rows.d_model,
        "decoder_norm": "free",
        "gradient_clip": 1.0,
        "lr": LR,
        "l1": L1,
        "lr_warm_up_fraction": 0.1,
        "dead_after_rows": 100 * options.batch_rows,
        "architecture": {"kind": "relu"} if kind == "relu" else {"kind": "batchtopk", "k": K},
        "dead_latents": {"kind": "none"} if kind == "relu" else auxk,
    }
    return [settings_of(None, **shared, seed=seed) for seed in range(options.seeds)]


def compare(kind: str, rows: Rows, options: argparse.Namespace) -> dict[str, Any]:
    """Trains both kinds of one architecture for every seed, and compares."""
    settings = settings_for(kind, rows, options)
    data: dict[str, Any] = {"batch_rows": options.batch_rows, "scale": rows.scale, "mean": rows.mean}
    # Without a number of steps the threshold has the rate of a long run, which is SAELens's.
    step = make_step(settings, **data, device=torch.device("cpu"))
    equal = VariantGroup(step, settings, num_steps=options.steps, **data)
    starts = [sae.tensors() for sae in equal.trained_weights()]
    begin = time.perf_counter()
    ours = train_ours(equal, rows)
    middle = time.perf_counter()
    theirs = [train_saelens(kind, start, rows, options) for start in starts]
    seconds = {"ours": middle - begin, "SAELens": time.perf_counter() - middle}
    found: dict[str, Any] = {
        "measures": verdicts(kind, ours, theirs),
        "ours": ours,
        "saelens": theirs,
        "seconds": seconds,
    }
    if kind == "batchtopk":
        own = make_group(settings, num_steps=options.steps, **data, device=torch.device("cpu"))
        at_our_rate = train_ours(own, rows)
        found["measures_at_our_rate"] = verdicts("batchtopk, our rate", at_our_rate, theirs)
        found["ours_at_our_rate"] = at_our_rate
        found["only_thresholds_differ"] = same_but_thresholds(equal, own)
        print(f"at both rates, our weights are {'equal' if found['only_thresholds_differ'] else 'NOT equal'}")
    return found


def train_ours(group: VariantGroup, rows: Rows) -> list[dict[str, float]]:
    """Trains a group on the batches; its SAEs, one per seed, measured as they are saved."""
    for bits in rows.train:
        group.step(bits)
    judged = []
    for sae in group.trained_weights():
        latents = encode(sae, rows.measured)
        judged.append(rows.judge(latents, decode(sae, latents)))
    return judged


def same_but_thresholds(first: VariantGroup, second: VariantGroup) -> bool:
    """Whether all weights but the thresholds are equal, bit by bit."""
    return all(
        torch.equal(tensor, other.tensors()[name])
        for one, other in zip(first.trained_weights(), second.trained_weights(), strict=True)
        for name, tensor in one.tensors().items()
        if name != "threshold"
    )


def train_saelens(kind: str, start: dict[str, Tensor], rows: Rows, options: argparse.Namespace) -> dict[str, float]:
    """SAELens's trainer on the same batches from the same weights; measured as it is saved."""
    from sae_lens import (
        SAE,
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        StandardTrainingSAE,
        StandardTrainingSAEConfig,
    )
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    shared = {"d_in": rows.d_model, "d_sae": options.factor * rows.d_model, "apply_b_dec_to_input": True}
    if kind == "relu":
        sae: Any = StandardTrainingSAE(StandardTrainingSAEConfig(**shared, l1_coefficient=L1))
    else:
        sae = BatchTopKTrainingSAE(
            BatchTopKTrainingSAEConfig(**shared, k=K, aux_loss_coefficient=1.0, rescale_acts_by_decoder_norm=False)
        )
    with torch.no_grad():
        for name, tensor in start.items():
            if name != "threshold":
                getattr(sae, name).copy_(tensor)
    config = SAETrainerConfig(
        total_training_samples=options.steps * options.batch_rows,
        train_batch_size_samples=options.batch_rows,
        device="cpu",
        lr=LR,
        lr_end=LR,
        lr_warm_up_steps=round(0.1 * options.steps),
        dead_feature_window=100,
        n_checkpoints=0,
        save_final_checkpoint=False,
    )
    config.logger.log_to_wandb = False
    SAETrainer(cfg=config, sae=sae, data_provider=(rows.scaled(bits) for bits in rows.train)).fit()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        sae.save_inference_model(folder)
        saved = SAE.load_from_disk(folder)
        latents = saved.encode(rows.measured)
        return rows.judge(latents, saved.decode(latents))


def verdicts(kind: str, ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Per measure: both means, their difference, and the spread of SAELens's seeds."""
    found = {}
    for name in MEASURES:
        mine, other = [seed[name] for seed in ours], [seed[name] for seed in theirs]
        difference, spread = statistics.mean(mine) - statistics.mean(other), max(other) - min(other)
        found[name] = {"difference": difference, "spread": spread, "within_spread": abs(difference) <= spread}
        shown = [f"{statistics.mean(values):.4f} ({min(values):.4f}-{max(values):.4f})" for values in (mine, other)]
        print(f"{kind:<22}{name:<20}{shown[0]:>24}{shown[1]:>24}{difference:>+12.4f}{spread:>10.4f}")
    return found


if __name__ == "__main__":
    main()
