"""The program: harvest activations once, train many sparse autoencoders on them, evaluate, report.

    language_model -> harvest -> train -> evaluate -> report

Each command is one stage of dvc.yaml and can be run by hand. Settings that change results are in params.yaml; flags
and environment variables only say where and with what to compute.
"""

import argparse
import contextlib
import functools
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from command_line import parser_of
from compute.program import run_command
from compute.progress import phase, progress

if TYPE_CHECKING:
    from store.files.open import CachePlace
    from store.identity import ModelIdentity

DATA = Path("data")
LANGUAGE_MODEL_FILE = DATA / "language_model.json"
ACTIVATIONS = DATA / "activations"
SCRATCH = DATA / ".partial"
SET_UPS = DATA / ".evaluation"
MODELS = Path("models")
RESULTS = Path("results")
REPORTS = Path("reports")
REFERENCES = Path("references")


def language_model(arguments: argparse.Namespace) -> None:
    """Check every setting in params.yaml and that the language model is at hand; record which one it is."""
    from harvest.estimate import check_model_fits, check_shard
    from harvest.files import check_text
    from harvest.worlds import identity_of, make_worlds
    from language_model.load import identify, resolve
    from params import load_params
    from store.atomic import write_json
    from store.replace import check_writable

    params = load_params(arguments.params)
    settings, synthetic = params.profile.language_model, params.profile.harvest.synthetic
    if synthetic is not None:
        check_shard(params.profile.harvest, d_model=synthetic.d_model)
        identity = identity_of(synthetic, make_worlds(synthetic))
    elif settings is not None and params.profile.harvest.text is not None:
        check_text(params.profile.harvest.text)
        folder = resolve(settings.name, settings.revision)
        identity = identify(folder, settings.name, settings.revision)
        check_model_fits(params.profile.harvest, identity, folder=folder)
    for output in (ACTIVATIONS, MODELS, RESULTS, REPORTS):
        check_writable(output)
    write_json(LANGUAGE_MODEL_FILE, identity)
    what = "known features" if synthetic is not None else f"the language model {identity.name!r}"
    print(f"params.yaml is in order; profile {params.profile_name!r} uses {what}")


def harvest(arguments: argparse.Namespace) -> None:
    """Run the language model over the text once and store its activations, compressed without loss."""
    with phase("harvest", "importing libraries"):
        from harvest.dispatch import HarvestResources
        from harvest.run import run
        from params import load_params
        from store.cache.text_account import account_lines
        from store.harvest_log import read_harvest_log

    profile = load_params(arguments.params).profile
    manifest = run(
        profile.harvest,
        model=profile.language_model,
        output=ACTIVATIONS,
        scratch=SCRATCH / "harvest",
        resources=HarvestResources(
            device=_device(arguments.device),
            scheduler=arguments.scheduler,
            num_workers=arguments.workers,
            num_threads=arguments.threads,
        ),
        reuse=not arguments.no_reuse,
        estimate_only=arguments.estimate,
    )
    if manifest is None:
        return
    if manifest.text_account is not None:
        print("\n".join(f"text: {line}" for line in account_lines(manifest.text_account)))
    log = read_harvest_log(ACTIVATIONS, digest=manifest.digest)
    if log is not None:
        print("\n".join(f"harvested {line}" for line in log.lines()))
    print(f"{ACTIVATIONS}: {manifest.num_rows:,} rows per hook, data digest {manifest.digest[:12]}")


def train(arguments: argparse.Namespace) -> None:
    """Train all variants of params.yaml on the cached activations, fused into one set of batches."""
    with phase("train", "importing libraries"):
        from params import load_params
        from train.run import run
        from train.task import TrainingResources
        from train.telemetry import MetricsSinks

    params = load_params(arguments.params)
    diverged = run(
        params.profile.train,
        params.variants,
        cache=_cache_place(arguments),
        output=MODELS,
        scratch=SCRATCH / "train",
        resources=TrainingResources(
            device=_device(arguments.device),
            num_threads=arguments.threads,
            checkpoint_every_seconds=arguments.checkpoint_every_seconds,
            num_checkpoints=arguments.keep_checkpoints,
            sinks=MetricsSinks(tensorboard=arguments.tensorboard, wandb=arguments.wandb),
        ),
        reuse=not arguments.no_reuse,
        budget_bytes=None if arguments.memory_gib is None else int(arguments.memory_gib * 2**30),
        scheduler=arguments.scheduler,
    )
    print(f"{MODELS}: {len(params.variants) - len(diverged)} trained SAEs")
    if diverged:
        print(f"{MODELS}: {len(diverged)} diverged and cannot be used: {', '.join(diverged)}")


def export(arguments: argparse.Namespace) -> None:
    """Copy trained SAEs into a folder that can be uploaded to a model hub, with a card made from the artefacts."""
    from evaluate.publish import run
    from store.replace import check_settled

    check_settled(MODELS)
    names = run(
        MODELS, arguments.variants, output=arguments.output, with_diverged=arguments.with_diverged,
        license_id=arguments.license,
    )  # fmt: skip
    print(f"{arguments.output}: {', '.join(names)}, each loadable by SAELens's SAE.load_from_disk")


def evaluate(arguments: argparse.Namespace) -> None:
    """Measure the trained variants with one benchmark, or with all."""
    from evaluate.benchmarks.registry import BENCHMARKS
    from evaluate.judge.limits import JudgeLimits
    from evaluate.run import run
    from params import load_params
    from store.replace import check_settled

    judge_limits = JudgeLimits(
        max_requests=arguments.judge_max_requests,
        max_tokens=arguments.judge_max_tokens,
        max_cost=arguments.judge_max_cost,
        input_price=arguments.judge_input_price,
        output_price=arguments.judge_output_price,
    )

    check_settled(MODELS)
    profile = load_params(arguments.params).profile
    for benchmark in [arguments.benchmark] if arguments.benchmark else BENCHMARKS:
        run(
            profile.evaluate,
            benchmark=benchmark,
            model=profile.language_model,
            cache=_cache_place(arguments),
            models_folder=MODELS,
            output=RESULTS / benchmark,
            scratch=SCRATCH / "evaluate",
            set_ups=SET_UPS,
            set_up_bytes=int(arguments.set_up_gib * 2**30),
            device=_device(arguments.device),
            reuse=not arguments.no_reuse,
            scheduler=arguments.scheduler,
            judge_limits=judge_limits,
        )
    if arguments.check_reference:
        from evaluate.reference_check import check_references
        from store.cache.manifest import load_manifest
        from store.files.open import open_files

        manifest = load_manifest(open_files(_cache_place(arguments)))
        print(*check_references(REFERENCES, results_folder=RESULTS / "sparse_probing", manifest=manifest), sep="\n")


def report(arguments: argparse.Namespace) -> None:
    """Compare the variants and write reports/report.html and reports/report.md."""
    from evaluate.report.page import run
    from params import load_params
    from store.replace import check_settled

    for folder in (MODELS, *RESULTS.glob("*")):
        check_settled(folder)
    params = load_params(arguments.params)
    page = run(
        params.profile.evaluate,
        variants=list(params.variants),
        models_folder=MODELS,
        results_folder=RESULTS,
        cache=_cache_place(arguments),
        output=REPORTS,
        references=REFERENCES,
    )
    print(f"The report is {page}")


def store_info(arguments: argparse.Namespace) -> None:
    """Say what an activation cache holds: model, text, rows, sizes and ratio per hook, statistics, lineage."""
    from store.care.info import describe, summary

    if arguments.json:
        print(json.dumps(summary(arguments.path), indent=1, sort_keys=True))
    else:
        print(describe(arguments.path))


def store_verify(arguments: argparse.Namespace) -> None:
    """Check a cache against its manifest: presence and sizes of files, records and metadata; with --full every byte."""
    from store.care.verify import verify

    problems = verify(arguments.path, full=arguments.full, num_threads=arguments.threads, progress=progress)
    if problems:
        advice = f"Run `python pipeline.py store repair {arguments.path}`"
        raise ValueError(
            "\n".join([*problems, f"{len(problems)} of the files of {arguments.path} cannot be trusted. {advice}"])
        )
    what = "every byte is" if arguments.full else "every file has its size, and records and metadata are"
    print(f"{arguments.path}: {what} as written")


def store_repair(arguments: argparse.Namespace) -> None:
    """Put damaged files back: from DVC's cache or remote, else harvested again and compared with the recorded bytes."""
    from harvest.repair import harvest_again
    from params import load_params
    from store.care.repair import repair
    from store.replace import assembly_folder

    if not arguments.path.is_dir():
        raise ValueError(
            f"expected an activation cache in {arguments.path}, found no such folder. Harvest or pull it first; one "
            "behind a URL is repaired where it was made, and uploaded again"
        )
    harvest_damaged = None
    if not arguments.no_harvest:
        profile = load_params(arguments.params).profile
        harvest_damaged = functools.partial(
            harvest_again,
            config=profile.harvest,
            model=profile.language_model,
            damaged=arguments.path,
            device=_device(arguments.device),
        )
    path = arguments.path.resolve()
    scratch = assembly_folder(path, path.with_name(f".{path.name}.repair"))
    tracked = path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else ""
    done = repair(
        arguments.path,
        output=tracked,
        scratch=scratch,
        harvest_again=harvest_damaged,
        accept_different_bytes=arguments.accept_different_bytes,
        num_threads=arguments.threads,
        progress=progress,
    )
    for name in sorted(done.problems):
        how = "restored from a copy" if name in done.restored else "harvested again"
        print(f"{arguments.path / name}: {how}" + (", with other bytes" if name in done.changed else ""))
    if done.unlisted:
        names = ", ".join(done.unlisted)
        raise ValueError(f"expected no such files in {arguments.path}: {names}. Move them away or remove them yourself")
    print(f"{arguments.path}: {f'{len(done.problems)} files repaired' if done.problems else 'nothing to repair'}")


def store_export(arguments: argparse.Namespace) -> None:
    """Write the same rows in the same order to a new cache in another codec."""
    from store.care.transcode import export

    manifest = export(
        arguments.path,
        arguments.destination,
        codec=arguments.codec,
        num_threads=arguments.threads,
        progress=progress,
    )
    print(f"{arguments.destination}: {manifest.num_rows:,} rows per hook in the codec {arguments.codec}, checked")


def store_sample(arguments: argparse.Namespace) -> None:
    """Print some rows, chosen by a seed, with the tokens around them."""
    import numpy as np

    from store.care.sample import format_sample, sample_rows
    from store.read.cache import ActivationCache

    cache = ActivationCache(arguments.path, splits=("training",))
    hook = arguments.hook or cache.spec.hooks[0]
    sampled = sample_rows(cache, hook, num_rows=arguments.num_rows, seed=arguments.seed)
    print(f"{hook} of {arguments.path}, seed {arguments.seed}")
    print(format_sample(sampled, decode=_decoder(cache.spec.model, arguments.model, arguments.params)))
    if arguments.npy:
        with arguments.npy.open("wb") as file:
            np.save(file, np.stack([item.bits for item in sampled]), allow_pickle=False)
        print(f"{arguments.npy}: uint16 {(len(sampled), cache.spec.model.d_model)}, bit patterns of bfloat16")


def _decoder(model: "ModelIdentity", wanted: str | None, params: Path) -> "Callable[[list[int]], str] | None":
    """What spells tokens, if the very tokenizer of the cache is on this machine; nothing is fetched.

    A checkpoint in a folder is not found by its name: the folder is `wanted`, or named in params.yaml. The tokenizer of
    a `wanted` one must be the cache's; where the others are not, tokens stay numbers.
    """
    from language_model.identity import tokenizer_digest
    from language_model.load import resolve
    from language_model.tokenizer import load_tokenizer
    from params import load_params

    os.environ["HF_HUB_OFFLINE"] = "1"
    if not model.is_language_model:
        return None
    if wanted is not None:
        places: list[tuple[str, str | None]] = [(wanted, model.revision)]
    else:
        places = [(model.name, model.revision)]
        with contextlib.suppress(ValueError):  # sampling needs no settings
            settings = load_params(params).profile.language_model
            if settings is not None:
                places.append((settings.name, settings.revision))
    for name, revision in places:
        try:
            folder = resolve(name, revision)
        except ValueError:
            if wanted is not None:
                raise
            continue
        found = tokenizer_digest(folder)
        if found == model.tokenizer_sha256:
            return functools.partial(load_tokenizer(folder).decode, skip_special_tokens=False)
        if wanted is not None:
            raise ValueError(
                f"expected the tokenizer of the cache, {model.tokenizer_sha256[:12]}, in {folder}, found another, "
                f"{found[:12]}. Name the language model that the cache was harvested with, or leave --model out"
            )
    return None


def _cache_place(arguments: argparse.Namespace) -> "CachePlace":
    """Where the activation cache is and how it is read, as the flags say."""
    from store.files.open import CachePlace

    return CachePlace(
        arguments.cache,
        mode=arguments.read_mode,
        range_cache=arguments.range_cache,
        range_cache_bytes=int(arguments.range_cache_gib * 2**30),
    )


def _device(wanted: str) -> str:
    from compute.device import choose_device  # imports torch, which takes seconds

    return choose_device(wanted)


def build_parser() -> argparse.ArgumentParser:
    """All commands of this program with their flags."""
    return parser_of(
        (language_model, harvest, train, evaluate, report),
        export=export,
        store={
            "info": store_info,
            "verify": store_verify,
            "repair": store_repair,
            "export": store_export,
            "sample": store_sample,
        },
        description=__doc__,
        activations=ACTIVATIONS,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 2 for wrong usage, and those of compute/program.py."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning)
    # Before torch is imported: threads that wait for work sleep instead of spinning, which on a busy machine takes the
    # cores from those that have some (measured: 2.5 times the step time with one other process on two cores).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    return run_command(lambda: arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
