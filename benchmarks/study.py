"""The lambda study in one pass over the data, and the time of training its variants one after another.

    python benchmarks/study.py [--cache data/activations] [--rows 1000000] [--alone 6] [--threads 2] [--json]

The variants of params.yaml at three l1 and three seeds, three small fixed values and a dual lambda at three seeds each:
the grid below, which is all that a user would put into params.yaml. Both sides run the training stage itself, reader,
log, checkpoints and artefacts included. One after another is measured on a SUBSET, `--alone` variants taken evenly from
the study, half of them before the pass and half after it; what is compared is SAE-tokens/s, and nothing is
extrapolated. `--rows` makes a smaller cache of the first rows.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import machine
from ruamel.yaml import YAML

from params import load_params
from store.cache.moments import ShardSums
from store.cache.split import SPLITS
from store.read.cache import ActivationCache
from store.sae.artefact import SAECard, load_card
from store.write.writer import CacheWriter
from train.config import TrainConfig, VariantConfig
from train.run import run
from train.task import How

ROOT = Path(__file__).resolve().parents[1]
GRID = """
sparsity: {of: all, values: {l1: [0.75, 1.5, 3.0], seed: [0, 1, 2]}}
small: {of: {lambda: {kind: fixed, value: 1.0}}, values: {lambda.value: [1.0e-3, 1.0e-2, 1.0e-1], seed: [0, 1, 2]}}
dual: {of: {lambda: {kind: dual, start: 0.01, target: 0.004, rate: 0.02}}, values: {seed: [0, 1, 2]}}
"""
FIGURES = ("explained_variance", "l0", "penalty", "mean_max_cosine", "lambda")


def main() -> None:
    """Parses the command line, trains, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=ROOT / "data" / "activations", help="(%(default)s)")
    parser.add_argument("--rows", type=int, help="train on so many rows of the cache (all)")
    parser.add_argument("--alone", type=int, default=6, help="variants trained one after another (%(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="study-") as name:
        folder = Path(name)
        cache = options.cache if options.rows is None else first_rows(options.cache, folder / "cache", options.rows)
        result = measure(folder, cache=cache, num_alone=options.alone, num_threads=options.threads)
    result |= {"machine": machine("torch"), "threads": options.threads}
    print_tables(result)
    if options.json:
        print(json.dumps(result, sort_keys=True))


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
    """Seconds and SAE-tokens/s of both ways, and the study's figures."""
    config, variants = the_study(folder)
    names = list(variants)
    alone = [names[index * len(names) // num_alone] for index in range(num_alone)]
    how = How(device="cpu", num_threads=num_threads)

    def timed(some: Sequence[str], output: str) -> float:
        begin = time.perf_counter()
        run(
            config, {name: variants[name] for name in some}, cache_folder=cache, output=folder / output,
            scratch=folder / "scratch", how=how, reuse=False,
        )  # fmt: skip
        return time.perf_counter() - begin

    half = num_alone // 2
    seconds_alone = [timed([name], f"alone-{name}") for name in alone[:half]]
    seconds = timed(names, "together")
    seconds_alone += [timed([name], f"alone-{name}") for name in alone[half:]]
    cards = {name: load_card(folder / "together" / name) for name in names}
    rows = next(iter(cards.values())).num_training_rows
    together_rate, alone_rate = rows * len(names) / seconds, rows * len(alone) / sum(seconds_alone)
    return {
        "num_variants": len(names),
        "rows": rows,
        "together": {"seconds": seconds, "sae_tokens_per_second": together_rate},
        "alone": {"variants": alone, "seconds": seconds_alone, "sae_tokens_per_second": alone_rate},
        "times_faster": together_rate / alone_rate,
        "diverged": [name for name, card in cards.items() if "diverged_at_step" in card.final],
        "treatments": treatments(cards),
    }


def treatments(cards: Mapping[str, SAECard]) -> list[dict[str, Any]]:
    """Final figures per lambda and l1, mean and sample deviation over seeds; of training rows, not held-out."""
    grouped: dict[str, list[SAECard]] = {}
    for card in cards.values():
        if "diverged_at_step" not in card.final:
            grouped.setdefault(json.dumps([card.variant["lambda"], card.variant["l1"]]), []).append(card)
    found = []
    for group in grouped.values():
        figures = {}
        for key in FIGURES:
            values = [float(card.final[key]) for card in group]
            figures[key] = [statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None]
        first = group[0]
        found.append({"of": first.name, "l1": first.variant["l1"], "num_seeds": len(group), **figures})
    return found


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
                    bits = torch.from_numpy(cache.rows(hook, np.arange(*bounds), split=split))
                    rows[hook] = bits.view(torch.bfloat16)
                    exact = rows[hook].to(torch.float64)
                    sums[hook] = ShardSums(
                        num_rows=len(exact), sum=exact.sum(0).tolist(), sum_of_squares=exact.square().sum(0).tolist()
                    )
                tokens = cache.tokens(sequences, split=split)
                writer.submit_shard(shard, split=split, tokens=tokens, rows=rows, sums=sums).result()
        writer.finish()
    return target


def print_tables(result: Mapping[str, Any]) -> None:
    """The figures, readable."""
    print("  ".join(f"{key} {value}" for key, value in result["machine"].items()), f" threads {result['threads']}")
    together, alone = result["together"], result["alone"]
    print(f"{result['rows']:,} rows, {result['num_variants']} variants; diverged: {result['diverged'] or 'none'}")
    print(
        f"one pass:           {together['seconds']:8.1f} s for {result['num_variants']} variants, "
        f"{together['sae_tokens_per_second']:,.0f} SAE-tokens/s"
    )
    print(
        f"one after another:  {sum(alone['seconds']):8.1f} s for a SUBSET of {len(alone['variants'])}, "
        f"{alone['sae_tokens_per_second']:,.0f} SAE-tokens/s ({', '.join(alone['variants'])})"
    )
    print(f"one pass is {result['times_faster']:.2f} times as fast per SAE-token")
    print(f"{'treatment':<28}{'l1':>6}{'seeds':>6}" + "".join(f"{key:>22}" for key in FIGURES))
    for row in result["treatments"]:
        cells = (f"{row[key][0]:.4g}" + ("" if row[key][1] is None else f" +- {row[key][1]:.2g}") for key in FIGURES)
        print(f"{row['of']:<28}{row['l1']:>6}{row['num_seeds']:>6}" + "".join(f"{cell:>22}" for cell in cells))


if __name__ == "__main__":
    main()
