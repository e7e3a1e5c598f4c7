"""How often the statistics of the report call a difference where there is none.

    python benchmarks/false_alarm.py [--cache data/activations] [--pool 30] [--seeds 3] [--json]
    python benchmarks/false_alarm.py --simulate [--json]

With a cache: a pool of SAEs that differ by seed alone (initialisation and order of batches; lambda 0) is trained and
measured (benchmarks core and geometry). A repetition draws SAEs without replacement, calls them a baseline and four
treatments at `--seeds` seeds, and compares them as the report does. The share of repetitions in which anything of a
family is called a difference should be at most 5 %. Repetitions share SAEs, so that their number does not say how sure
the share is: its error is a jackknife over the SAEs of the pool.

`--simulate` trains nothing: normal and heavy-tailed differences over seeds, and of the text that all seeds share, in
several proportions; four treatments on eight independent figures, each with its own error. Error binomial.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench import machine
from numpy.typing import NDArray

from evaluate.benchmarks.core import CoreConfig
from evaluate.benchmarks.geometry import GeometryConfig
from evaluate.compare.comparisons import HEADLINES, compare
from evaluate.compare.paired import LEVEL, holm, paired_difference
from evaluate.config import EvaluateConfig
from evaluate.jackknife import from_arrays
from evaluate.results import read_arrays, read_result
from evaluate.run import run as evaluate
from params import load_params
from store.sae.artefact import SAECard, load_card
from train.config import VariantConfig
from train.lambdas import FixedLambda
from train.run import run as train
from train.task import TrainingResources

ROOT = Path(__file__).resolve().parents[1]
TREATMENTS = ("baseline", "a", "b", "c", "d")
SIMULATED_FIGURES = 8
FAMILIES = (HEADLINES, "core", "geometry")


def main() -> None:
    """Parses the command line, trains or simulates, prints the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=ROOT / "data" / "activations", help="(%(default)s)")
    parser.add_argument("--pool", type=int, default=30, help="SAEs to draw from (%(default)s)")
    parser.add_argument("--d-sae", type=int, default=96, help="their latents (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="of each treatment (%(default)s)")
    parser.add_argument("--repetitions", type=int, default=1000, help="(%(default)s)")
    parser.add_argument("--simulate", action="store_true", help="differences from a random generator; no SAEs")
    parser.add_argument("--threads", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    if not options.simulate and options.pool < len(TREATMENTS) * options.seeds:
        parser.error(f"expected --pool of at least {len(TREATMENTS) * options.seeds}, got {options.pool}")
    if options.simulate:
        found = {"simulated": simulated(options.repetitions)}
    else:
        with tempfile.TemporaryDirectory(prefix="false-alarm-") as name:
            found = {"pool": with_saes(Path(name), options)}
    print("  ".join(f"{key} {value}" for key, value in machine("torch", "scipy").items()))
    for line in next(iter(found.values())):
        words = "  ".join(f"{key} {value}" for key, value in line.items() if key not in ("share", "standard_error"))
        print(f"{words}: {line['share']:.2%} +- {line['standard_error']:.2%} called")
    if options.json:
        print(json.dumps({"level": LEVEL, **found}))


def with_saes(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Shares of repetitions with a call in each family, from trained SAEs."""
    params = load_params(ROOT / "params.yaml").profile
    config = params.train.model_copy(update={"d_sae": options.d_sae, "l1": 1.5})
    nothing = FixedLambda(kind="fixed", value=0.0)
    names = [f"seed-{seed}" for seed in range(options.pool)]
    variants = {
        name: VariantConfig.model_validate({"lambda": nothing, "seed": seed}) for seed, name in enumerate(names)
    }
    train(
        config, variants, cache=options.cache, output=folder / "models", scratch=folder / "scratch", reuse=False,
        resources=TrainingResources(device="cpu", num_threads=options.threads),
    )  # fmt: skip
    settings = EvaluateConfig.model_validate(
        dict.fromkeys(EvaluateConfig.model_fields)
        | {
            "core": CoreConfig(num_reconstruction_sequences=32, num_sparsity_sequences=96, batch_sequences=16),
            "geometry": GeometryConfig(num_bins=20),
        }
    )
    for benchmark in ("core", "geometry"):
        evaluate(
            settings, benchmark=benchmark, model=params.language_model, cache=options.cache,
            models_folder=folder / "models", output=folder / "results" / benchmark, scratch=folder / "scratch",
            set_ups=folder / "set-ups", device="cpu", reuse=False,
        )  # fmt: skip
    cards = {name: load_card(folder / "models" / name) for name in names}
    metrics: dict[str, dict[str, float]] = {name: {} for name in names}
    units: dict[str, dict[str, NDArray[np.float64]]] = {name: {} for name in names}
    for benchmark in ("core", "geometry"):
        for name in names:
            place = folder / "results" / benchmark
            result = read_result(place / f"{name}.json")
            metrics[name] |= {f"{benchmark}/{metric}": value for metric, value in result.metrics.items()}
            if result.arrays_sha256 is not None:
                arrays = from_arrays(read_arrays(place, result))
                units[name] |= {f"{benchmark}/{metric}": values for metric, values in arrays.items()}
    return drawn(cards, metrics, units, num_seeds=options.seeds, repetitions=options.repetitions)


def drawn(
    cards: Mapping[str, SAECard],
    metrics: Mapping[str, Mapping[str, float]],
    units: Mapping[str, Mapping[str, NDArray[np.float64]]],
    *,
    num_seeds: int,
    repetitions: int,
) -> list[dict[str, Any]]:
    """Repetitions of a study from a pool of SAEs, with the share that calls something in each family."""
    generator, names = np.random.default_rng(0), list(cards)
    called = np.zeros((repetitions, len(FAMILIES)), dtype=bool)
    members = np.zeros((repetitions, len(names)), dtype=bool)
    for repetition in range(repetitions):
        chosen = generator.choice(len(names), size=len(TREATMENTS) * num_seeds, replace=False)
        members[repetition, chosen] = True
        study: dict[str, str] = {}
        for index, number in enumerate(chosen):
            study[f"{TREATMENTS[index // num_seeds]}-{index % num_seeds}"] = names[number]
        study = {name.removesuffix("-0"): sae for name, sae in study.items()}
        found = compare(
            {name: _called(cards[sae], name) for name, sae in study.items()},
            {name: metrics[sae] for name, sae in study.items()},
            errors={},
            without_one={name: units[sae] for name, sae in study.items()},
        )
        for column, family in enumerate(FAMILIES):
            called[repetition, column] = any(item.verdict in ("better", "worse") for item in found.family(family))
    lines = []
    for column, family in enumerate(FAMILIES):
        shares = np.array([called[~members[:, sae], column].mean() for sae in range(len(names))])
        error = np.sqrt((len(names) - 1) / len(names) * np.square(shares - shares.mean()).sum())
        lines.append(
            {
                "family": family,
                "pool": len(names),
                "seeds": num_seeds,
                "repetitions": repetitions,
                "share": float(called[:, column].mean()),
                "standard_error": float(error),
            }
        )
    return lines


def _called(card: SAECard, name: str) -> SAECard:
    """The SAE under the name, the lambda and the seed that it has in a repetition."""
    treatment, _, seed = name.partition("-")
    schedule = {"kind": "fixed", "value": float(TREATMENTS.index(treatment))}
    number = int(seed or 0)
    settings = {**card.variant, "lambda": schedule, "seed": number}
    return card.model_copy(update={"name": name, "seed": number, "variant": settings})


def simulated(repetitions: int) -> list[dict[str, Any]]:
    """Shares of simulated studies with a call in their family."""
    generator = np.random.default_rng(0)
    lines = []
    for num_seeds in (2, 3, 5):
        for tails in ("normal", "t with 3 degrees of freedom"):
            for share_of_text in (0.0, 0.5, 0.9):
                hits = [
                    _one_study(generator, num_seeds, tails, share_of_text, num_units=40) for _ in range(repetitions)
                ]
                share = float(np.mean(hits))
                lines.append(
                    {
                        "seeds": num_seeds,
                        "tails": tails,
                        "share of the variance that is of the text": share_of_text,
                        "share": share,
                        "standard_error": float(np.sqrt(share * (1.0 - share) / repetitions)),
                    }
                )
    return lines


def _one_study(
    generator: np.random.Generator, num_seeds: int, tails: str, share_of_text: float, *, num_units: int
) -> bool:
    """Whether a study of no differences calls one: all treatments share the baseline's noise."""

    def noise(*shape: int) -> NDArray[np.float64]:
        if tails == "normal":
            return generator.normal(size=shape)
        return generator.standard_t(3, size=shape) / 3**0.5

    p_values = {}
    for figure in range(SIMULATED_FIGURES):
        seeds = noise(len(TREATMENTS), num_seeds) * (num_seeds * (1.0 - share_of_text)) ** 0.5
        text = noise(len(TREATMENTS), num_units) * (num_units * share_of_text) ** 0.5
        without = (text.sum(axis=1, keepdims=True) - text) / (num_units - 1)
        values = seeds + text.mean(axis=1, keepdims=True)
        for treatment in range(1, len(TREATMENTS)):
            pairs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]] = [
                (without[treatment] + seeds[treatment, seed], without[0] + seeds[0, seed]) for seed in range(num_seeds)
            ]
            found = paired_difference(
                [(float(values[treatment, seed]), float(values[0, seed])) for seed in range(num_seeds)],
                without_one=pairs,
            )
            p_values[figure, treatment] = 1.0 if found.p_value is None else found.p_value
    return min(holm(p_values).values()) < LEVEL


if __name__ == "__main__":
    main()
