"""What finding l1 from a target L0 costs and how near it comes: against constant l1s on the same batches.

    python benchmarks/target_l0.py [--cache data/activations] [--lambdas 0 0.01 1] [--target 46] [--lr 1e-3] [--seeds 0]
        [--l1 0.5 0.8 1.2 1.8 2.7 4 6] [--only-target] [--threads 2] [--json]

Settings are those of the profile in params.yaml. All variants see the same batches; figures are held out. The constant
l1 of the same held-out L0 is not trained but interpolated, linearly in log L0, between the two constant l1s whose L0
lie on both sides; where none does, more or other --l1 are asked for.
"""

import argparse
import bisect
import itertools
import math
from pathlib import Path
from typing import Any

import bench
from held_out import Figures, train_and_measure

from params import load_params
from store.read.cache import ActivationCache
from train.config import VariantConfig, resolve


def main() -> None:
    """Parses the command line, trains, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("data/activations"))
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--lambdas", type=float, nargs="+", default=[0.0, 0.01, 1.0])
    parser.add_argument("--target", type=float, default=46.0)
    parser.add_argument("--lr", type=float, nargs="+", help="learning rates (the profile's)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--l1", type=float, nargs="+", default=[0.5, 0.8, 1.2, 1.8, 2.7, 4.0, 6.0])
    parser.add_argument("--only-target", action="store_true", help="no constant l1s: only how near L0 comes")
    parser.add_argument("--epochs", type=int, help="passes over the rows (the profile's)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    constants = [] if options.only_target else sorted(options.l1)
    config = load_params(options.params).profile.train
    if options.epochs is not None:
        config = config.model_copy(update={"num_epochs": options.epochs})
    target = {"target_l0": options.target}
    points = list(itertools.product(options.lambdas, options.lr or [config.lr], options.seeds))
    settings = {
        (point, l1): resolve(
            config,
            VariantConfig.model_validate(
                {
                    "lambda": {"kind": "fixed", "value": point[0]}, "lr": point[1], "seed": point[2],
                    "l1": target if l1 is None else l1, "sparsity_warm_up_fraction": 0.0,
                }
            ),
        )
        for point in points
        for l1 in [None, *constants]
    }  # fmt: skip
    by_name = {name_of(point, l1): variant for (point, l1), variant in settings.items()}
    figures = train_and_measure(config, by_name, ActivationCache(options.cache), num_threads=options.threads)
    found = {key: figures[name_of(*key)] for key in settings}
    rows = [compared(point, found[point, None], [found[point, l1] for l1 in constants]) for point in points]
    bench.table(
        ("lambda", "lr", "seed", "L0 of training rows", "held out", "EV", "EV constant l1", "difference", "final l1"),
        [(*row["point"], *(row[name] for name in COLUMNS)) for row in rows],
    )
    bench.finish(
        {
            "machine": bench.machine("torch"), "target_l0": options.target, "constant_l1": constants, "compared": rows,
            "variants": {name: value._asdict() for name, value in figures.items()},
        },
        options,
    )  # fmt: skip


COLUMNS = ("training_l0", "l0", "explained_variance", "constant_explained_variance", "difference", "coefficient")


def name_of(point: tuple[float, float, int], l1: float | None) -> str:
    """A variant in the JSON object."""
    return f"lambda {point[0]:g}, lr {point[1]:g}, seed {point[2]}, l1 {'found' if l1 is None else f'{l1:g}'}"


def compared(point: tuple[float, float, int], found: Figures, constant: list[Figures]) -> dict[str, Any]:
    """The found l1 beside the constant one of the same held-out L0."""
    row: dict[str, Any] = {"point": [f"{value:g}" for value in point], **found._asdict()}
    at_same = at_l0(constant, found.l0) if constant else None
    difference = None if at_same is None else found.explained_variance - at_same
    return row | {"constant_explained_variance": at_same, "difference": difference}


def at_l0(constant: list[Figures], l0: float) -> float:
    """Explained variance of the constant l1 with this L0, between its two neighbours; SystemExit where one is missing.

    >>> far, near = Figures(0.8, 80.0, 0.0, 0.0, 0.0), Figures(0.6, 20.0, 0.0, 0.0, 0.0)
    >>> round(at_l0([far, near], 40.0), 12)  # half way in log L0
    0.7
    """
    ordered = sorted(constant, key=lambda figures: figures.l0)
    above = bisect.bisect_left([figures.l0 for figures in ordered], l0)
    if above in (0, len(ordered)):
        raise SystemExit(
            f"expected constant l1s with an L0 on both sides of {l0:.1f}, got {ordered[0].l0:.1f} to "
            f"{ordered[-1].l0:.1f}. Give other --l1"
        )
    low, high = ordered[above - 1], ordered[above]
    share = math.log(l0 / low.l0) / math.log(high.l0 / low.l0)
    return low.explained_variance + share * (high.explained_variance - low.explained_variance)


if __name__ == "__main__":
    main()
