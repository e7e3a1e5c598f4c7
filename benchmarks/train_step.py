"""Speed of the fused training step against SAELens's MultiSAETrainer, and against the machine's own GEMM rate.

    python benchmarks/train_step.py [--cache DIR | --input ROWS.npy] [--batch-rows 2048 --threads 2] [--json]

Everything is measured in one process, in turns: ours reading shuffled batches from the store, with decoding; SAELens's
own fit() on the same batches, which it gets as float32 tensors from memory; a square product. SAE-tokens/s = rows x
SAEs per second; a step's products are counted as 10 B d F floating point operations per SAE. Ratios and shares are
medians over the rounds, of figures of the same round: other work on the machine slows all contenders of a round alike.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from bench_rows import GEMM_SIZE, gemm, in_turns, machine, open_cache, repeated, settings_of

from store.read.cache import ActivationCache
from train.group import VariantGroup, make_group
from train.steps.input import activation_scale, load_batch

FIXED: dict[str, Any] = {"kind": "fixed", "value": 1.0}
PLAIN: dict[str, Any] = {"kind": "fixed", "value": 0.0}
STUDY: list[dict[str, Any]] = [
    PLAIN,
    FIXED,
    {"kind": "learned", "start": 1.0},
    {"kind": "linear", "start": 0.1, "end": 10.0},
    {"kind": "learned", "start": 10.0},
]


def main() -> None:
    """Parses the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="an activation cache; data/activations unless --input is given")
    parser.add_argument("--input", type=Path, metavar="ROWS.npy", help="uint16 (rows, d_model) bfloat16 bit patterns")
    parser.add_argument("--batch-rows", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shapes", nargs="*", default=["1x8", "4x4"], help="F / d_model x number of SAEs")
    parser.add_argument("--variants", nargs="*", type=int, default=[1, 2, 4, 8, 16, 32], help="for cost against V")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3, help="steps per turn")
    parser.add_argument("--profile", action="store_true", help="also say where a step's time goes")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {"machine": machine(options.device), "batch_rows": options.batch_rows}
    print("  ".join(f"{name} {value}" for name, value in result["machine"].items()))
    with tempfile.TemporaryDirectory() as scratch:
        cache, hook = open_cache(options.cache, options.input, Path(scratch) / "cache")
        bench = Bench(cache, hook, options)
        result["d_model"] = bench.d_model
        result["shapes"] = [bench.compare(*map(int, shape.split("x"))) for shape in options.shapes]
        result["against_variants"] = [bench.alone(num_variants) for num_variants in options.variants]
    if options.json:
        print(json.dumps(result, sort_keys=True))


class Bench:
    """The rows, and what is measured on them."""

    def __init__(self, cache: ActivationCache, hook: str, options: argparse.Namespace) -> None:
        self.cache, self.hook = cache, hook
        self.device = torch.device(options.device)
        self.batch_rows: int = options.batch_rows
        self.num_rounds, self.num_steps = options.rounds, options.steps
        self.num_threads: int = options.threads
        self.profile: bool = options.profile
        moments = cache.manifest.moments[hook]
        self.mean, self.d_model = list(moments.mean), len(moments.mean)
        self.scale = activation_scale(d_model=self.d_model, mean_squared_norm=moments.mean_squared_norm)

    def batches(self) -> Any:  # noqa: ANN401 - a stream of the store
        """Endless shuffled batches from the store, the same ones each time."""
        return self.cache.batches(
            self.hook, batch_rows=self.batch_rows, seed=0, num_epochs=None, num_threads=self.num_threads
        )

    def group(self, num_latents: int, lambdas: list[dict[str, Any]]) -> VariantGroup:
        """Fused variants with one seed each."""
        settings = [settings_of(lam, d_sae=num_latents, seed=seed) for seed, lam in enumerate(lambdas)]
        return make_group(
            settings,
            num_steps=10**6,
            batch_rows=self.batch_rows,
            scale=self.scale,
            mean=self.mean,
            device=self.device,
        )

    def compare(self, factor: int, num_variants: int) -> dict[str, Any]:
        """One shape: ours without and with penalties against SAELens and the GEMM rate."""
        F = factor * self.d_model
        with self.batches() as plain_stream, self.batches() as study_stream:
            plain = self.group(F, [PLAIN] * num_variants)
            study = self.group(F, [STUDY[index % len(STUDY)] for index in range(num_variants)])
            fixed = self.group(F, [FIXED] * num_variants)
            contenders: dict[str, Callable[[int], object]] = {
                "ours": repeated(lambda: plain.step(next(plain_stream))),
                "ours, study": repeated(lambda: study.step(next(study_stream))),
                "gram alone": repeated(lambda: fixed.add_penalties(fixed.lambdas_at(0), 0)),
                "SAELens": self.saelens(F, num_variants),
                "GEMM": repeated(gemm(self.device)),
            }
            seconds = in_turns(contenders, num_rounds=self.num_rounds, num_steps=self.num_steps, device=self.device)
            where = self.where_time_goes(contenders["ours"]) if self.profile else None
        flops = 10.0 * self.batch_rows * self.d_model * F * num_variants
        gemm_seconds = [flops / (2.0 * GEMM_SIZE**3) * seconds_of_round for seconds_of_round in seconds["GEMM"]]
        tokens = self.batch_rows * num_variants
        allowed = 1.2 * 0.4 * min(F, self.d_model) / self.batch_rows
        result = {
            "d_sae": F,
            "num_variants": num_variants,
            "gemm_gflops": 2e-9 * GEMM_SIZE**3 / min(seconds["GEMM"]),
            "best_seconds_per_step": {name: min(times) for name, times in seconds.items() if name != "GEMM"},
            "sae_tokens_per_second": {name: tokens / min(seconds[name]) for name in ("ours", "ours, study", "SAELens")},
            "times_saelens": {name: paired(seconds["SAELens"], seconds[name]) for name in ("ours", "ours, study")},
            "share_of_gemm_rate": {
                name: paired(gemm_seconds, seconds[name]) for name in ("ours", "ours, study", "SAELens")
            },
            "gram_share_of_gemm_time": paired(seconds["gram alone"], gemm_seconds),
            "gram_share_allowed": allowed,
        }
        if where is not None:
            result["where_time_goes"] = where
        print_shape(result)
        return result

    def alone(self, num_variants: int) -> dict[str, Any]:
        """Our step at F = d with a number of variants, beside the GEMM rate."""
        with self.batches() as stream:
            group = self.group(self.d_model, [PLAIN] * num_variants)
            contenders = {
                "ours": repeated(lambda: group.step(next(stream))),
                "GEMM": repeated(gemm(self.device)),
            }
            seconds = in_turns(contenders, num_rounds=self.num_rounds, num_steps=self.num_steps, device=self.device)
        flops = 10.0 * self.batch_rows * self.d_model**2 * num_variants
        gemm_seconds = [flops / (2.0 * GEMM_SIZE**3) * seconds_of_round for seconds_of_round in seconds["GEMM"]]
        best, share = min(seconds["ours"]), paired(gemm_seconds, seconds["ours"])
        per_sae = 1e3 * best / num_variants
        print(f"F = d, V = {num_variants:<3}{1e3 * best:>9.1f} ms a step{per_sae:>9.2f} ms a SAE{share:>7.0%}")
        return {"num_variants": num_variants, "best_seconds_per_step": best, "share_of_gemm_rate": share}

    def saelens(self, num_latents: int, num_variants: int) -> Callable[[int], object]:
        """Steps of SAELens's MultiSAETrainer.fit on the store's batches, which lie in memory."""
        from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.multi_sae_trainer import MultiSAETrainer

        batches = self.in_memory(self.num_rounds * (self.num_steps + 1))
        names = [f"sae{index}" for index in range(num_variants)]
        config = SAETrainerConfig(
            total_training_samples=10**6 * self.batch_rows,
            train_batch_size_samples=self.batch_rows,
            device=str(self.device),
            lr_end=3e-4,
            n_checkpoints=0,
            save_final_checkpoint=False,
        )
        config.logger.log_to_wandb = False
        saes = {
            name: StandardTrainingSAE(
                StandardTrainingSAEConfig(
                    d_in=self.d_model,
                    d_sae=num_latents,
                    device=str(self.device),
                    l1_coefficient=1.5,
                    apply_b_dec_to_input=True,
                )
            )
            for name in names
        }

        def provider() -> Iterator[dict[str, torch.Tensor]]:
            while True:
                for batch in batches:
                    yield {self.hook: batch}

        trainer = MultiSAETrainer(
            cfg=config, saes=saes, hook_names=dict.fromkeys(names, self.hook), data_provider=provider()
        )

        def take(num_steps: int) -> None:
            config.total_training_samples = trainer.n_training_samples + num_steps * self.batch_rows
            with contextlib.redirect_stderr(io.StringIO()):  # a progress bar per call
                trainer.fit()

        return take

    def in_memory(self, count: int) -> list[torch.Tensor]:
        """The first batches of the stream as scaled float32 rows on the device."""
        with self.batches() as stream:
            bits = [next(stream) for _ in range(min(count, self.cache.manifest.num_rows // self.batch_rows))]
            rows = torch.empty(self.d_model, self.batch_rows, device=self.device)
            found = []
            for batch in bits:
                load_batch(batch, scale=self.scale, out_DB=rows)
                found.append(rows.t().contiguous())
        return found

    def where_time_goes(self, take: Callable[[int], object]) -> dict[str, float]:
        """Shares of the operations that take most of a step."""
        from torch.profiler import ProfilerActivity, profile

        cuda = self.device.type == "cuda"
        with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found:
            take(3)
        times = {
            event.key: float(event.self_device_time_total if cuda else event.self_cpu_time_total)
            for event in found.key_averages()
        }
        total = sum(times.values())
        return {name: times[name] / total for name in sorted(times, key=lambda key: -times[key])[:10]}


def paired(numerators: list[float], denominators: list[float]) -> float:
    """Median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def print_shape(result: dict[str, Any]) -> None:
    """The figures of one shape, readable."""
    print(f"\n{result['num_variants']} SAEs of {result['d_sae']} latents; GEMM {result['gemm_gflops']:.0f} GFLOP/s")
    print(f"{'step':<14}{'ms':>9}{'SAE-tokens/s':>15}{'x SAELens':>11}{'of GEMM rate':>14}")
    for name, rate in result["sae_tokens_per_second"].items():
        times = f"{result['times_saelens'][name]:.2f}" if name in result["times_saelens"] else ""
        seconds, share = result["best_seconds_per_step"][name], result["share_of_gemm_rate"][name]
        print(f"{name:<14}{1e3 * seconds:>9.1f}{rate:>15,.0f}{times:>11}{share:>14.0%}")
    got, allowed = result["gram_share_of_gemm_time"], result["gram_share_allowed"]
    print(f"gram penalty for all: {got:.2%} of the step's GEMM time, {allowed:.2%} allowed")
    for name, share in result.get("where_time_goes", {}).items():
        print(f"    {share:>6.1%}  {name}")
    print()


if __name__ == "__main__":
    main()
