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

from compute.program import run_command
from store.codec.names import CODEC_NAMES

if TYPE_CHECKING:
    from store.files.open import CachePlace
    from store.identity import ModelIdentity

DATA = Path("data")
LANGUAGE_MODEL_FILE = DATA / "language_model.json"
ACTIVATIONS = DATA / "activations"
SCRATCH = DATA / ".partial"
MODELS = Path("models")
RESULTS = Path("results")
REPORTS = Path("reports")


def language_model(arguments: argparse.Namespace) -> None:
    """Check every setting in params.yaml and that the language model is at hand; record which one it is."""
    from harvest.estimate import check_model_fits
    from language_model.load import identify, max_positions, resolve
    from params import load_params
    from store.atomic import write_json
    from store.replace import check_writable

    params = load_params(arguments.params)
    settings = params.profile.language_model
    for path in getattr(params.profile.harvest.text, "paths", ()):
        if not Path(path).is_file():
            raise ValueError(f"expected the text file {path} of harvest.text.paths, found none. Correct the path")
    folder = resolve(settings.name, settings.revision)
    identity = identify(folder, settings.name, settings.revision)
    check_model_fits(params.profile.harvest, identity, max_positions=max_positions(folder))
    for output in (ACTIVATIONS, MODELS, RESULTS, REPORTS):
        check_writable(output)
    write_json(LANGUAGE_MODEL_FILE, identity)
    print(f"params.yaml is in order; profile {params.profile_name!r} uses the language model {identity.name!r}")


def harvest(arguments: argparse.Namespace) -> None:
    """Run the language model over the text once and store its activations, compressed without loss."""
    from harvest.run import run
    from params import load_params

    profile = load_params(arguments.params).profile
    manifest = run(
        profile.harvest,
        model=profile.language_model,
        output=ACTIVATIONS,
        scratch=SCRATCH / "harvest",
        device=_device(arguments.device),
        reuse=not arguments.no_reuse,
    )
    print(f"{ACTIVATIONS}: {manifest.num_rows:,} rows per hook, data digest {manifest.digest[:12]}")


def train(arguments: argparse.Namespace) -> None:
    """Train all variants of params.yaml on the cached activations, fused into one set of batches."""
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
    from evaluate.config import EvaluateConfig
    from evaluate.run import run
    from params import load_params
    from store.replace import check_settled

    check_settled(MODELS)
    profile = load_params(arguments.params).profile
    for benchmark in [arguments.benchmark] if arguments.benchmark else EvaluateConfig.model_fields:
        run(
            profile.evaluate,
            benchmark=benchmark,
            model=profile.language_model,
            cache=_cache_place(arguments),
            models_folder=MODELS,
            output=RESULTS / benchmark,
            scratch=SCRATCH / "evaluate",
            device=_device(arguments.device),
            reuse=not arguments.no_reuse,
        )


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

    problems = verify(arguments.path, full=arguments.full, num_threads=arguments.threads)
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

    manifest = export(arguments.path, arguments.destination, codec=arguments.codec, num_threads=arguments.threads)
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
    if wanted is not None:
        places: list[tuple[str, str | None]] = [(wanted, model.revision)]
    else:
        places = [(model.name, model.revision)]
        with contextlib.suppress(ValueError):  # sampling needs no settings
            settings = load_params(params).profile.language_model
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


def _add_cache_flags(command: argparse.ArgumentParser) -> None:
    """Where the activation cache is and how it is read; none of it changes a result."""
    environment = os.environ.get
    command.add_argument(
        "--cache",
        metavar="PLACE",
        default=environment("PIPELINE_CACHE", str(ACTIVATIONS)),
        help="activation cache: a folder, or a URL such as s3://bucket/folder (%(default)s; environment: "
        "PIPELINE_CACHE)",
    )
    command.add_argument(
        "--read-mode",
        type=_read_mode,
        metavar="MODE",
        default=environment("PIPELINE_READ_MODE", "mmap"),
        help="how a folder's files are read: mmap, or pread for network file systems (%(default)s; environment: "
        "PIPELINE_READ_MODE)",
    )
    command.add_argument(
        "--range-cache",
        type=Path,
        metavar="DIR",
        default=environment("PIPELINE_RANGE_CACHE"),
        help="keep what is read from a URL in this folder (none: keep nothing; environment: PIPELINE_RANGE_CACHE)",
    )
    command.add_argument(
        "--range-cache-gib",
        type=_positive_number,
        metavar="GIB",
        default=environment("PIPELINE_RANGE_CACHE_GIB", "20"),
        help="the most that --range-cache may take (%(default)s; environment: PIPELINE_RANGE_CACHE_GIB)",
    )


def _add_train_flags(command: argparse.ArgumentParser) -> None:
    """Where and how to train; none of it changes a result but in the last bits."""
    environment = os.environ.get
    command.add_argument(
        "--memory-gib",
        type=_positive_number,
        default=environment("PIPELINE_MEMORY_GIB"),
        help="memory that one pass over the data may take; more variants than fit are trained in further passes "
        "(half of the machine's, 85 %% of a GPU's; environment: PIPELINE_MEMORY_GIB)",
    )
    command.add_argument(
        "--scheduler",
        default=environment("PIPELINE_SCHEDULER"),
        help="address of a Dask scheduler whose workers train, such as tcp://host:8786; they must see this folder "
        "under the same path, and run the same code and packages (none: train here; environment: PIPELINE_SCHEDULER)",
    )
    command.add_argument(
        "--checkpoint-every-seconds",
        type=_positive_number,
        default=120.0,
        help="time between checkpoints (%(default)s)",
    )
    command.add_argument("--keep-checkpoints", type=_positive, default=2, help="checkpoints kept (%(default)s)")
    command.add_argument(
        "--tensorboard",
        metavar="DIR",
        default=environment("PIPELINE_TENSORBOARD"),
        help="also write TensorBoard event files here (environment: PIPELINE_TENSORBOARD)",
    )
    command.add_argument(
        "--wandb",
        metavar="PROJECT",
        default=environment("PIPELINE_WANDB"),
        help="also log to this Weights & Biases project (environment: PIPELINE_WANDB)",
    )


def _positive_number(text: str) -> float:
    """An argument that measures something."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number > 0, got {text!r}")
    return number


def _read_mode(text: str) -> str:
    """An argument that says how files are read."""
    if text not in ("mmap", "pread"):
        raise argparse.ArgumentTypeError(f"expected mmap or pread, got {text!r}")
    return text


def _positive(text: str) -> int:
    """An argument that counts something."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return number


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pipeline.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    threads = os.cpu_count() or 1
    for stage in (language_model, harvest, train, evaluate, report):
        command = commands.add_parser(stage.__name__, help=stage.__doc__, description=stage.__doc__)
        command.set_defaults(run=stage)
        command.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings (%(default)s)")
        if stage in (harvest, train, evaluate):
            command.add_argument(
                "--device",
                default=os.environ.get("PIPELINE_DEVICE", "auto"),
                help="cpu, cuda, cuda:1 ... (auto: a GPU if there is one; environment: PIPELINE_DEVICE)",
            )
            command.add_argument(
                "--no-reuse",
                action="store_true",
                default=os.environ.get("PIPELINE_NO_REUSE", "") not in ("", "0"),
                help="ignore earlier outputs; an interrupted run is still continued (environment: PIPELINE_NO_REUSE=1)",
            )
        if stage in (train, evaluate, report):
            _add_cache_flags(command)
        if stage is train:
            command.add_argument(
                "--threads", type=_positive, default=threads, help="threads of products and decoding (%(default)s)"
            )
            _add_train_flags(command)
        if stage is evaluate:
            command.add_argument("--benchmark", help="only this one: core or geometry (default: all)")
    command = commands.add_parser(export.__name__, help=export.__doc__, description=export.__doc__)
    command.set_defaults(run=export)
    command.add_argument("variants", nargs="*", metavar="VARIANT", help="names of variants (default: all)")
    command.add_argument("--output", type=Path, default=Path("export"), help="folder to make (%(default)s)")
    command.add_argument("--license", help="licence identifier for the card, such as mit or gemma")
    command.add_argument("--with-diverged", action="store_true", help="also those whose training diverged")
    _add_store_commands(commands, threads)
    return parser


def _add_store_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", threads: int) -> None:
    about = "Look at, check, repair and convert an activation cache."
    store = commands.add_parser("store", help=about, description=about)
    inspections = store.add_subparsers(title="commands", metavar="COMMAND", required=True)
    actions = {
        "info": store_info,
        "verify": store_verify,
        "repair": store_repair,
        "export": store_export,
        "sample": store_sample,
    }
    command = {}
    for name, action in actions.items():
        command[name] = inspections.add_parser(name, help=action.__doc__, description=action.__doc__)
        command[name].set_defaults(run=action)
        elsewhere = action in (store_info, store_verify, store_sample)
        where = "folder of the cache, data/activations" + (", or a URL such as s3://bucket/folder" if elsewhere else "")
        command[name].add_argument("path", type=str if elsewhere else Path, metavar="PATH", help=where)
        if action in (store_verify, store_repair, store_export):
            command[name].add_argument(
                "--threads", type=_positive, default=threads, help="files checked at once (%(default)s)"
            )
    command["info"].add_argument("--json", action="store_true", help="print all of it as one JSON object")
    command["verify"].add_argument("--full", action="store_true", help="read every file and compare its SHA-256")
    repair = command["repair"]
    repair.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings it was harvested with")
    repair.add_argument("--device", default=os.environ.get("PIPELINE_DEVICE", "auto"), help="to harvest on (auto)")
    repair.add_argument("--no-harvest", action="store_true", help="only restore copies, never run the language model")
    repair.add_argument(
        "--accept-different-bytes",
        action="store_true",
        help="keep shards that come out with other bytes than recorded: another cache, whose lineage says so",
    )
    command["export"].add_argument("destination", type=Path, metavar="DEST", help="folder to be made")
    command["export"].add_argument("--codec", required=True, choices=CODEC_NAMES, help="how to compress")
    sample = command["sample"]
    sample.add_argument("-n", "--num-rows", type=_positive, default=8, help="how many rows (%(default)s)")
    sample.add_argument("--hook", help="of which hook (the first)")
    sample.add_argument("--seed", type=int, default=0, help="which rows (%(default)s)")
    sample.add_argument("--model", metavar="MODEL", help="folder or name of the language model, to spell tokens")
    sample.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings that may name it")
    sample.add_argument("--npy", type=Path, metavar="FILE", help="also save their bit patterns as a .npy file")


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
