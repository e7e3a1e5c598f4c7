"""What a benchmark costs for one SAE, for five, for fifteen, and for one more; and what sae-bench by itself costs.

    python benchmarks/evaluate_sweep.py [--study .] [--saes 15] [--benchmarks core,geometry] [--json]

Needs a finished study: `make repro` first. Where it has fewer SAEs than are asked for, more are made from them with 1 %
of noise in their weights: they cost the same. Each number of SAEs begins with an empty folder of set-ups; "one more" is
a new SAE whose set-up is there. Ours is timed with reading and writing of all files. "sae-bench alone" is
benchmarks/plain_sae_bench.py, once per SAE, loading of the language model included, measured on `--plain` SAEs.
"""

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plain_sae_bench
import torch
from bench import finish, machine, table

from evaluate.benchmarks.registry import BENCHMARKS
from evaluate.config import settings_of
from evaluate.dependencies import all_cards
from evaluate.run import run
from evaluate.task import Subject, make_context
from params import Profile, load_params
from store.cache.manifest import load_manifest
from store.sae.artefact import load_sae, save_sae
from store.sae.weights import SAEWeights

COUNTS = (1, 5, 15)
NOISE = 0.01


def main() -> None:
    """Parses the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path(), help="folder with data/ and models/ (%(default)s)")
    parser.add_argument("--saes", type=int, default=15, help="the most SAEs to measure (%(default)s)")
    parser.add_argument("--plain", type=int, default=1, help="SAEs for sae-bench alone (%(default)s)")
    parser.add_argument("--benchmarks", help="some of them, separated by commas (all that the profile has)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    profile = load_params(options.study / "params.yaml").profile
    wanted = options.benchmarks.split(",") if options.benchmarks else list(BENCHMARKS)
    wanted = [name for name in wanted if settings_of(profile.evaluate, name) is not None]
    figures: dict[str, Any] = {"machine": machine("sae-bench", "torch"), "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory(prefix="evaluate-sweep-") as name:
        folder = Path(name)
        saes = prepare_saes(options.study, folder / "models", options.saes + 1)
        figures["benchmarks"] = {
            benchmark: measured(benchmark, profile, options.study, folder, saes, num_plain=options.plain)
            for benchmark in wanted
        }
    show(figures["benchmarks"])
    finish(figures, options)


def prepare_saes(study: Path, folder: Path, count: int) -> list[str]:
    """Puts `count` SAEs into `folder`, one more than is measured at once; their names."""
    manifest = load_manifest(study / "data" / "activations")
    originals = list(all_cards(study / "models", manifest))
    names = []
    for number in range(count):
        source = originals[number % len(originals)]
        weights, card = load_sae(study / "models" / source)
        if number >= len(originals):
            weights = with_noise(weights, seed=number)
        name = f"sae-{number:02d}"
        fields = card.model_dump(exclude={"format", "weights_sha256", "form", "k", "d_model", "d_sae"})
        save_sae(folder / name, weights, fields | {"name": name}, [])
        names.append(name)
    return names


def with_noise(weights: SAEWeights, *, seed: int) -> SAEWeights:
    """The same SAE with 1 % of noise in its matrices."""
    generator = torch.Generator().manual_seed(seed)

    def noisy(matrix: torch.Tensor) -> torch.Tensor:
        return matrix * (1.0 + NOISE * torch.randn(matrix.shape, generator=generator))

    return SAEWeights(
        noisy(weights.W_enc), weights.b_enc, noisy(weights.W_dec), weights.b_dec, k=weights.k,
        threshold=weights.threshold, r_mag=weights.r_mag, b_mag=weights.b_mag,
    )  # fmt: skip


def measured(
    benchmark: str, profile: Profile, study: Path, folder: Path, saes: Sequence[str], *, num_plain: int
) -> dict[str, float]:
    """Seconds of one benchmark, by what was measured."""
    found: dict[str, float] = {}
    evaluate(benchmark, profile, study, folder, saes[:1], set_ups="warm-up")  # imports of libraries, compiled code
    counts = [count for count in COUNTS if count < len(saes)]
    for count in counts:
        found[f"{count} SAEs"] = evaluate(benchmark, profile, study, folder, saes[:count], set_ups=f"set-ups-{count}")
    found["one more"] = evaluate(benchmark, profile, study, folder, saes[-1:], set_ups=f"set-ups-{counts[-1]}")
    peer = getattr(plain_sae_bench, f"run_{benchmark}", None)
    if peer is not None:
        subject = subject_of(benchmark, profile, study, folder / "models", tuple(saes[:num_plain]), folder / "unused")
        begin = time.perf_counter()
        for name in saes[:num_plain]:
            peer(make_context(subject), settings_of(profile.evaluate, benchmark), folder / "models" / name)
        found["sae-bench alone, one SAE"] = (time.perf_counter() - begin) / num_plain
    return found


def evaluate(
    benchmark: str, profile: Profile, study: Path, folder: Path, names: Sequence[str], *, set_ups: str
) -> float:
    """Seconds that the stage takes for some of the SAEs."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        chosen = Path(name) / "models"
        chosen.mkdir()
        for sae in names:
            (chosen / sae).symlink_to(folder / "models" / sae)
        begin = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):
            run(
                profile.evaluate, benchmark=benchmark, model=profile.language_model,
                cache=study / "data" / "activations", models_folder=chosen, output=Path(name) / "results",
                scratch=Path(name) / "scratch", set_ups=folder / benchmark / set_ups, device="cpu", reuse=False,
            )  # fmt: skip
        return time.perf_counter() - begin


def subject_of(
    benchmark: str, profile: Profile, study: Path, models: Path, names: tuple[str, ...], set_ups: Path
) -> Subject:
    """What the peer is given: the same cache and the same SAEs."""
    settings = settings_of(profile.evaluate, benchmark)
    if settings is None:
        raise ValueError(f"expected settings of {benchmark}, got null")
    return Subject(
        benchmark=benchmark, settings=settings, model=profile.language_model,
        cache=study / "data" / "activations", models_folder=models, variants=names, set_ups=set_ups,
        set_up_bytes=2**40, device="cpu",
    )  # fmt: skip


def show(figures: dict[str, dict[str, float]]) -> None:
    """Seconds, and what they come to: five SAEs against one, and sae-bench alone against as many as were measured."""
    rows: list[tuple[object, ...]] = []
    for name, seconds in figures.items():
        most = max(int(key.split()[0]) for key in seconds if key.endswith("SAEs"))
        alone = seconds.get("sae-bench alone, one SAE")
        rows.append(
            (
                name, *(seconds.get(f"{count} SAEs", "-") for count in COUNTS), seconds["one more"],
                seconds["5 SAEs"] / seconds["1 SAEs"] if "5 SAEs" in seconds else "-",
                "-" if alone is None else alone,
                "-" if alone is None else most * alone / seconds[f"{most} SAEs"],
            )
        )  # fmt: skip
    header = ("seconds", *(f"{count} SAEs" for count in COUNTS), "one more", "5 / 1", "alone, 1 SAE", "times faster")
    table(header, rows)


if __name__ == "__main__":
    main()
