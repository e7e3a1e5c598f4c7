"""Every arm of docs/arms.md beside the five variants, trained on the same batches: a table of held-out figures.

    python benchmarks/arms.py [--cache data/activations] [--only frozen ortsae] [--seeds 0 1 2] [--target 46]
        [--threads 2] [--json]

Settings are those of the profile in params.yaml, with `l1: {target_l0: 46}` under `train`, so that relu arms end at the
L0 that the page's `k` give the others. Figures are means over seeds, with their sample deviation.
"""

import argparse
import re
import statistics
from pathlib import Path
from typing import Any

import bench
import yaml
from held_out import Figures, train_and_measure
from pydantic import TypeAdapter

from params import load_params
from store.read.cache import ActivationCache
from train.config import VariantConfig, resolve
from train.grid import Grid, combinations, with_grid

PAGE = Path(__file__).parent.parent / "docs" / "arms.md"


def main() -> None:
    """Parses the command line, trains, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("data/activations"))
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--only", nargs="+", help="names of arms on the page (all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--target", type=float, default=46.0, help="L0 of variants with an l1 (%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    params = load_params(options.params)
    l1 = {"target_l0": options.target}
    config = type(params.profile.train).model_validate(
        params.profile.train.model_dump(by_alias=True) | {"l1": l1, "sparsity_warm_up_fraction": 0.0}
    )
    grid = arms(options.only)
    written = {name: variant for name, variant in params.variants.items() if variant.seed is None}
    grid["seeds"] = {"of": "all", "values": {"seed": options.seeds}}
    points = [
        (point.grid, point.name, VariantConfig.model_validate(point.settings))
        for point in combinations(TypeAdapter(Grid).validate_python(grid), written)
    ]
    study = with_grid(config, {}, points)
    settings = {name: resolve(config, variant) for name, variant in study.items()}
    chosen = {name: variant for name, variant in settings.items() if variant.seed in options.seeds}
    figures = train_and_measure(config, chosen, ActivationCache(options.cache), num_threads=options.threads)
    by_arm: dict[str, list[Figures]] = {}
    for name, value in figures.items():
        by_arm.setdefault(re.sub(r"-seed-\d+$", "", name), []).append(value)
    rows: list[tuple[object, ...]] = [
        (arm, *(spread([getattr(value, field) for value in values]) for field in COLUMNS))
        for arm, values in by_arm.items()
    ]
    bench.table(("arm", "EV", "L0 held out", "mean max cosine", "L0 of training rows", "final l1 or l0"), rows)
    result = {"machine": bench.machine("torch"), "seeds": options.seeds, "target_l0": options.target}
    bench.finish(result | {"variants": {name: value._asdict() for name, value in figures.items()}}, options)


COLUMNS = ("explained_variance", "l0", "max_cosine", "training_l0", "coefficient")


def arms(only: list[str] | None) -> dict[str, Any]:
    """The page's lines as a grid, or some of them by name."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    found: dict[str, Any] = yaml.safe_load("".join(blocks))
    unknown = [name for name in only or [] if name not in found]
    if unknown:
        raise SystemExit(f"expected arms among {', '.join(found)}, got {', '.join(unknown)}. Correct --only")
    return {name: line for name, line in found.items() if only is None or name in only}


def spread(values: list[float]) -> str:
    """Mean and sample deviation over seeds."""
    mean = statistics.fmean(values)
    digits = 4 if abs(mean) < 10 else 2
    return f"{mean:.{digits}f}" + (f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
