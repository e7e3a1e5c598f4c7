"""The lambda study: nine treatments at three l1 and three seeds, 81 SAEs trained in one pass over the data.

    python benchmarks/study.py [--cache data/activations] [--rows 1000000] [--alone 6] [--threads 2] [--results FILE]

The study is the variants of params.yaml and the grid below, which is all that a user would put into params.yaml.
Explained variance and L0 are measured on the cache's held-out rows, in sequence order, with every row counted once.
`--results docs/study.json` writes all figures to the file that README.md and benchmarks/study_figure.py read.

`--alone` also trains that many variants one after another, taken evenly from the study, half of them before the pass
and half after it. Both sides run the training stage itself, reader, log, checkpoints and artefacts included. What is
compared is SAE-tokens/s, and nothing is extrapolated. `--rows` makes a smaller cache of the first rows.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import machine
from ruamel.yaml import YAML
from torch import Tensor

from harvest.moments import shard_sums
from params import load_params
from store.cache.split import SPLITS
from store.read.cache import ActivationCache
from store.sae.artefact import load_sae
from store.sae.weights import SAEWeights, decode, encode
from store.write.writer import CacheWriter
from train.config import TrainConfig, VariantConfig
from train.run import run
from train.task import TrainingResources

ROOT = Path(__file__).resolve().parents[1]
GRID = """
sparsity: {of: all, values: {l1: [0.75, 1.5, 3.0], seed: [0, 1, 2]}}
small:
  of: {lambda: {kind: fixed, value: 1.0}}
  values: {lambda.value: [1.0e-3, 1.0e-2, 1.0e-1], l1: [0.75, 1.5, 3.0], seed: [0, 1, 2]}
dual:
  of: {lambda: {kind: dual, start: 0.01, target: 0.004, rate: 0.02}}
  values: {l1: [0.75, 1.5, 3.0], seed: [0, 1, 2]}
"""
HELD_OUT_BATCH_ROWS = 8192
COLUMNS = ("explained_variance", "l0", "penalty", "mean_max_cosine", "lambda_at_end")


def main() -> None:
    """Parses the command line, trains, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=ROOT / "data" / "activations", help="(%(default)s)")
    parser.add_argument("--rows", type=int, help="train on so many rows of the cache (all)")
    parser.add_argument("--alone", type=int, default=0, help="variants trained one after another (%(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(%(default)s)")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write the figures of every SAE to this JSON file")
    options = parser.parse_args()
    frame = {"machine": machine("torch"), "threads": options.threads}  # before the pass: the commit that trains
    with tempfile.TemporaryDirectory(prefix="study-") as name:
        folder = Path(name)
        cache = options.cache if options.rows is None else first_rows(options.cache, folder / "cache", options.rows)
        results = frame | measure(folder, cache=cache, num_alone=options.alone, num_threads=options.threads)
    print_tables(results)
    if options.results is not None:
        options.results.write_text(as_json(results))


def the_study(folder: Path) -> tuple[TrainConfig, dict[str, VariantConfig]]:
    """The embedded profile of params.yaml with the grid."""
    yaml = YAML(typ="safe", pure=True)
    raw = yaml.load((ROOT / "params.yaml").read_text())
    raw |= {"profile": "embedded", "grid": yaml.load(GRID)}
    path = folder / "params.yaml"
    yaml.dump(raw, path)
    params = load_params(path)
    return params.profile.train, params.variants


def measure(folder: Path, *, cache: Path, num_alone: int, num_threads: int) -> dict[str, Any]:
    """Seconds and SAE-tokens/s of the pass (and of the variants alone), and the figures of every SAE."""
    config, variants = the_study(folder)
    names = list(variants)
    alone = [names[index * len(names) // num_alone] for index in range(num_alone)]
    resources = TrainingResources(device="cpu", num_threads=num_threads)

    def timed(some: Sequence[str], output: str) -> float:
        begin = time.perf_counter()
        run(
            config, {name: variants[name] for name in some}, cache=cache, output=folder / output,
            scratch=folder / "scratch", resources=resources, reuse=False,
        )  # fmt: skip
        return time.perf_counter() - begin

    half = num_alone // 2
    seconds_alone = [timed([name], f"alone-{name}") for name in alone[:half]]
    seconds = timed(names, "together")
    seconds_alone += [timed([name], f"alone-{name}") for name in alone[half:]]
    artefacts = {name: load_sae(folder / "together" / name) for name in names}
    held_out = held_out_figures({name: weights for name, (weights, _) in artefacts.items()}, cache, config.hook)
    saes = []
    for name, (_, card) in artefacts.items():
        saes.append({
            "name": name, "lambda": card.variant["lambda"], "l1": card.variant["l1"], "seed": card.seed,
            "diverged_at_step": card.final.get("diverged_at_step"),
            "held_out": held_out[name],
            "training": {key: card.final.get(key) for key in ("explained_variance", "l0")},
            "penalty": card.final.get("penalty"),
            "mean_max_cosine": card.final.get("mean_max_cosine"),
            "lambda_at_end": card.final.get("lambda"),
        })  # fmt: skip
    first = next(iter(artefacts.values()))[1]
    rows = first.num_training_rows
    return {
        "hook": first.hook, "d_model": first.d_model, "d_sae": first.d_sae, "train_version": first.train_version,
        "cache_digest": first.cache_digest,
        "num_training_rows": rows,
        "num_held_out_rows": ActivationCache(cache).manifest.split_rows("held_out"),
        "penalty_lower_bound": first.final["penalty_lower_bound"],
        "pass": {"seconds": seconds, "sae_tokens_per_second": rows * len(names) / seconds},
        "alone": {
            "variants": alone,
            "seconds": seconds_alone,
            "sae_tokens_per_second": rows * len(alone) / sum(seconds_alone) if alone else None,
        },
        "saes": saes,
    }  # fmt: skip


@torch.no_grad()
def held_out_figures(saes: Mapping[str, SAEWeights], cache: Path, hook: str) -> dict[str, dict[str, float]]:
    """Explained variance about the mean, and L0, of each SAE on all held-out rows; sums in float64.

    Explained variance is 1 - sum ||x - x_hat||^2 / sum ||x - mean(x)||^2, as in evaluate/benchmarks/core.py.
    """
    residual_sum, active = dict.fromkeys(saes, 0.0), dict.fromkeys(saes, 0)
    num_rows, row_sum, square_sum = 0, torch.zeros((), dtype=torch.float64), 0.0
    for x in held_out_rows(cache, hook):
        num_rows += len(x)
        row_sum = row_sum + x.double().sum(dim=0)
        square_sum += float(x.double().square().sum())
        for name, weights in saes.items():
            latents = encode(weights, x)
            residual_sum[name] += float((x.double() - decode(weights, latents).double()).square().sum())
            active[name] += int((latents > 0).sum())
    variance_sum = square_sum - float(row_sum.square().sum()) / num_rows
    return {
        name: {"explained_variance": 1.0 - residual_sum[name] / variance_sum, "l0": active[name] / num_rows}
        for name in saes
    }


def held_out_rows(location: Path, hook: str) -> Iterator[Tensor]:
    """The hook's held-out rows in sequence order, (rows, d_model) float32 per batch."""
    cache = ActivationCache(location)
    num_rows = cache.manifest.split_rows("held_out")
    for first in range(0, num_rows, HELD_OUT_BATCH_ROWS):
        numbers = np.arange(first, min(first + HELD_OUT_BATCH_ROWS, num_rows))
        bits = torch.from_numpy(cache.rows(hook, numbers, split="held_out"))
        yield bits.view(torch.bfloat16).float()


def first_rows(source: Path, target: Path, num_rows: int) -> Path:
    """A cache of the first sequences of another, at least `num_rows` rows of them, and of two held-out ones."""
    cache = ActivationCache(source)
    spec = cache.spec
    num_sequences = -(-num_rows // spec.rows_per_sequence)
    if num_sequences > cache.manifest.num_sequences:
        raise ValueError(f"expected --rows of at most the cache's {cache.manifest.num_rows}, got {num_rows}")
    with CacheWriter(target, spec, num_sequences=num_sequences, num_held_out_sequences=2) as writer:
        for split in SPLITS:
            for shard in writer.missing_shards(split):
                begin = shard * spec.sequences_per_shard
                sequences = np.arange(begin, begin + writer.shard_sequences(shard, split))
                bounds = (begin * spec.rows_per_sequence, (int(sequences[-1]) + 1) * spec.rows_per_sequence)
                rows, sums = {}, {}
                for hook in spec.hooks:
                    rows[hook] = cache.rows(hook, np.arange(*bounds), split=split)
                    sums[hook] = shard_sums(
                        rows[hook], hook=hook, first_sequence=begin, rows_per_sequence=spec.rows_per_sequence
                    )
                tokens = cache.tokens(sequences, split=split)
                writer.submit_shard(shard, split=split, tokens=tokens, rows=rows, sums=sums).result()
        writer.finish()
    return target


def as_json(results: Mapping[str, Any]) -> str:
    """The results as JSON, one SAE per line."""
    head = json.dumps({key: value for key, value in results.items() if key != "saes"}, indent=1)
    saes = ",\n".join(f"  {json.dumps(sae)}" for sae in results["saes"])
    return f'{head[:-2]},\n "saes": [\n{saes}\n ]\n}}\n'


def print_tables(results: Mapping[str, Any]) -> None:
    """Mean and sample deviation over seeds, per treatment and l1."""
    print("  ".join(f"{key} {value}" for key, value in results["machine"].items()), f" threads {results['threads']}")
    saes, alone = results["saes"], results["alone"]
    diverged = [sae["name"] for sae in saes if sae["diverged_at_step"] is not None]
    print(f"{results['num_training_rows']:,} rows, {len(saes)} SAEs; diverged: {', '.join(diverged) or 'none'}")
    rate = results["pass"]["sae_tokens_per_second"]
    print(f"one pass:           {results['pass']['seconds']:8.1f} s, {rate:,.0f} SAE-tokens/s")
    if alone["variants"]:
        print(
            f"one after another:  {sum(alone['seconds']):8.1f} s for a SUBSET of {len(alone['variants'])} "
            f"({', '.join(alone['variants'])}), {alone['sae_tokens_per_second']:,.0f} SAE-tokens/s: "
            f"one pass is {rate / alone['sae_tokens_per_second']:.2f} times as fast"
        )
    print(f"{'lambda':<60}{'l1':>6}{'seeds':>6}" + "".join(f"{column:>22}" for column in COLUMNS))
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for sae in saes:
        if sae["diverged_at_step"] is None:
            groups.setdefault((json.dumps(sae["lambda"]), sae["l1"]), []).append(sae | sae["held_out"])
    for (treatment, l1), group in groups.items():
        cells = ""
        for column in COLUMNS:
            values = [float(sae[column]) for sae in group]
            spread = f" +- {statistics.stdev(values):.2g}" if len(values) > 1 else ""
            cells += f"{f'{statistics.fmean(values):.4g}{spread}':>22}"
        print(f"{treatment:<60}{l1:>6}{len(group):>6}{cells}")


if __name__ == "__main__":
    main()
