"""The command line of the program: its commands, their flags, and what the flags may say. It does nothing itself."""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from store.codec.names import CODEC_NAMES

Command = Callable[[argparse.Namespace], None]


def parser_of(
    stages: Sequence[Command], *, export: Command, store: Mapping[str, Command], description: str, activations: Path
) -> argparse.ArgumentParser:
    """The parser of the program. A command's name and help are those of its function, which it leaves as `run`.

    Args:
        stages: in their order; flags depend on their names.
        export: the command that is no stage.
        store: what can be done with a cache, by the word for it.
        description: of the program.
        activations: where a cache is unless something else is said.
    """
    parser = argparse.ArgumentParser(
        prog="pipeline.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    threads = os.cpu_count() or 1
    for stage in stages:
        name = stage.__name__
        command = commands.add_parser(name, help=stage.__doc__, description=stage.__doc__)
        command.set_defaults(run=stage)
        command.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings (%(default)s)")
        if name in ("harvest", "train", "evaluate"):
            command.add_argument(
                "--device",
                default=_environment("PIPELINE_DEVICE", "auto"),
                help="cpu, cuda, cuda:1 ... (auto: a GPU if there is one; environment: PIPELINE_DEVICE)",
            )
            command.add_argument(
                "--no-reuse",
                action="store_true",
                default=os.environ.get("PIPELINE_NO_REUSE", "") not in ("", "0"),
                help="ignore earlier outputs; an interrupted run is still continued (environment: PIPELINE_NO_REUSE=1)",
            )
        if name == "harvest":
            _add_harvest_flags(command)
        if name in ("train", "evaluate", "report"):
            _add_cache_flags(command, activations)
        if name == "train":
            command.add_argument(
                "--threads", type=_positive, default=threads, help="threads of products and decoding (%(default)s)"
            )
            _add_train_flags(command)
        if name == "evaluate":
            command.add_argument("--benchmark", help="only this one, such as core (default: all)")
            command.add_argument(
                "--check-reference",
                action="store_true",
                help="then compare the language model's sparse probing accuracies with the published ones in "
                "references/; an error where they differ, or are of another language model, hook or settings",
            )
            command.add_argument(
                "--set-up-gib",
                type=_positive_number,
                default=_environment("PIPELINE_SET_UP_GIB", "20"),
                help="disk for what the SAEs of a sweep share, kept between runs (%(default)s; environment: "
                "PIPELINE_SET_UP_GIB)",
            )
            _add_scheduler_flag(command, "measure")
            _add_judge_flags(command)
    command = commands.add_parser(export.__name__, help=export.__doc__, description=export.__doc__)
    command.set_defaults(run=export)
    command.add_argument("variants", nargs="*", metavar="VARIANT", help="names of variants (default: all)")
    command.add_argument("--output", type=Path, default=Path("export"), help="folder to make (%(default)s)")
    command.add_argument("--license", help="licence identifier for the card, such as mit or gemma")
    command.add_argument("--with-diverged", action="store_true", help="also those whose training diverged")
    _add_store_commands(commands, store, threads)
    return parser


def _add_store_commands(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", actions: Mapping[str, Command], threads: int
) -> None:
    about = "Look at, check, repair and convert an activation cache."
    store = commands.add_parser("store", help=about, description=about)
    inspections = store.add_subparsers(title="commands", metavar="COMMAND", required=True)
    command = {}
    for name, action in actions.items():
        command[name] = inspections.add_parser(name, help=action.__doc__, description=action.__doc__)
        command[name].set_defaults(run=action)
        elsewhere = name in ("info", "verify", "sample")
        where = "folder of the cache, data/activations" + (", or a URL such as s3://bucket/folder" if elsewhere else "")
        command[name].add_argument("path", type=str if elsewhere else Path, metavar="PATH", help=where)
        if name in ("verify", "repair", "export"):
            command[name].add_argument(
                "--threads", type=_positive, default=threads, help="files checked at once (%(default)s)"
            )
    command["info"].add_argument("--json", action="store_true", help="print all of it as one JSON object")
    command["verify"].add_argument("--full", action="store_true", help="read every file and compare its SHA-256")
    repair = command["repair"]
    repair.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings it was harvested with")
    repair.add_argument("--device", default=_environment("PIPELINE_DEVICE", "auto"), help="to harvest on (auto)")
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


def _add_cache_flags(command: argparse.ArgumentParser, activations: Path) -> None:
    """Where the activation cache is and how it is read; none of it changes a result."""
    command.add_argument(
        "--cache",
        metavar="PLACE",
        default=_environment("PIPELINE_CACHE", str(activations)),
        help="activation cache: a folder, or a URL such as s3://bucket/folder (%(default)s; environment: "
        "PIPELINE_CACHE)",
    )
    command.add_argument(
        "--read-mode",
        type=_read_mode,
        metavar="MODE",
        default=_environment("PIPELINE_READ_MODE", "mmap"),
        help="how a folder's files are read: mmap, or pread for network file systems (%(default)s; environment: "
        "PIPELINE_READ_MODE)",
    )
    command.add_argument(
        "--range-cache",
        type=Path,
        metavar="DIR",
        default=_environment("PIPELINE_RANGE_CACHE"),
        help="keep what is read from a URL in this folder (none: keep nothing; environment: PIPELINE_RANGE_CACHE)",
    )
    command.add_argument(
        "--range-cache-gib",
        type=_positive_number,
        metavar="GIB",
        default=_environment("PIPELINE_RANGE_CACHE_GIB", "20"),
        help="the most that --range-cache may take (%(default)s; environment: PIPELINE_RANGE_CACHE_GIB)",
    )


def _add_harvest_flags(command: argparse.ArgumentParser) -> None:
    """Where and how to harvest; none of it changes a result."""
    command.add_argument(
        "--estimate", action="store_true", help="say what it would take (disk, time, memory, break-even), and end"
    )
    where = command.add_mutually_exclusive_group()
    where.add_argument(
        "--workers",
        type=_positive,
        metavar="N",
        default=_environment("PIPELINE_WORKERS"),
        help="harvest in N processes of this machine, one for each GPU, or several on a CPU (none: in this one; "
        "environment: PIPELINE_WORKERS)",
    )
    _add_scheduler_flag(where, "harvest")
    command.add_argument(
        "--threads",
        type=_positive,
        metavar="N",
        default=_environment("PIPELINE_THREADS"),
        help="threads of products in each process (all cores, shared by the workers; environment: PIPELINE_THREADS)",
    )


def _add_train_flags(command: argparse.ArgumentParser) -> None:
    """Where and how to train; none of it changes a result but in the last bits."""
    command.add_argument(
        "--memory-gib",
        type=_positive_number,
        default=_environment("PIPELINE_MEMORY_GIB"),
        help="memory that one pass over the data may take; more variants than fit are trained in further passes "
        "(half of the machine's, 85 %% of a GPU's; environment: PIPELINE_MEMORY_GIB)",
    )
    _add_scheduler_flag(command, "train")
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
        default=_environment("PIPELINE_TENSORBOARD"),
        help="also write TensorBoard event files here (environment: PIPELINE_TENSORBOARD)",
    )
    command.add_argument(
        "--wandb",
        metavar="PROJECT",
        default=_environment("PIPELINE_WANDB"),
        help="also log to this Weights & Biases project (environment: PIPELINE_WANDB)",
    )


def _add_judge_flags(command: argparse.ArgumentParser) -> None:
    """What a judge may cost; none of it changes a result. Its address and key are in OPENAI_BASE_URL and _API_KEY."""
    flags: tuple[tuple[str, Callable[[str], float], str], ...] = (
        ("max-requests", _positive, "the most requests that autointerp may send to a judge, of all runs together"),
        ("max-tokens", _positive, "the most tokens, in and out"),
        ("max-cost", _positive_number, "the most money, in the currency of the prices"),
        ("input-price", _positive_number, "of a million tokens that a judge reads, for the estimate and the limit"),
        ("output-price", _positive_number, "of a million tokens that it writes"),
    )
    for name, kind, meaning in flags:
        variable = "PIPELINE_JUDGE_" + name.upper().replace("-", "_")
        command.add_argument(
            f"--judge-{name}",
            type=kind,
            metavar="N",
            default=_environment(variable),
            help=f"{meaning} (none; environment: {variable})",
        )


def _add_scheduler_flag(command: argparse._ActionsContainer, verb: str) -> None:
    command.add_argument(
        "--scheduler",
        default=_environment("PIPELINE_SCHEDULER"),
        help=f"address of a Dask scheduler whose workers {verb}, such as tcp://host:8786; they must see this folder "
        f"under the same path, and run the same code and packages (none: {verb} here; environment: PIPELINE_SCHEDULER)",
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


def _environment(name: str, default: str | None = None) -> str | None:
    """An environment variable; one that is empty says nothing."""
    return os.environ.get(name) or default
