"""What benchmarks on labelled texts have in common: one set-up per data set and hook, filled by sae-bench's own code.

sae-bench keeps activations and probes under the data set's name alone, so that other settings would find them; here the
folder's name holds all that they depend on.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, JsonValue

from evaluate.benchmarks.benchmark import Benchmark, NotRun
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.labelled.config import HubLabels, Labels
from evaluate.labelled.hub import enough_texts
from evaluate.labelled.texts import identity, load, missing
from evaluate.substituted import quiet
from store.record import Record

if TYPE_CHECKING:
    from evaluate.sae_bench import StoredSAE

CLASSES_FILE = "classes.json"
Run = Callable[["StoredSAE", Labels, Path], object]
"""Runs sae-bench on one SAE and one data set, with a folder for what it keeps."""


def _texts(value: int) -> int:
    if value < 8 or value % 4:
        raise ValueError(f"expected a multiple of 4 from 8 on (two sides of two groups each), got {value}. Change it")
    return value


NumTexts = Annotated[int, AfterValidator(_texts)]


def _epochs(value: int) -> int:
    if value < 1:
        raise ValueError(f"expected at least one epoch, got {value}. Raise it")
    return value


Epochs = Annotated[int, AfterValidator(_epochs)]


def why_missing(labels: Sequence[Labels], benchmark: str) -> NotRun | None:
    """Which data sets are not on this machine."""
    sentences = [sentence for item in labels if (sentence := missing(item))]
    if not sentences:
        return None
    return NotRun(" ".join(sentences), f"Put them there, or take them out of evaluate.{benchmark}.datasets.")


def datasets_identity(labels: Sequence[Labels]) -> dict[str, JsonValue]:
    """What decides the texts of all data sets, for a result's key."""
    return {"datasets": [identity(item) for item in labels]}


def prepare_datasets(
    benchmark: Benchmark,
    config: Record,
    context: BenchmarkContext,
    labels: Sequence[Labels],
    *,
    train_size: int,
    test_size: int,
    seed: int,
    d_sae: int,
    run: Run,
) -> dict[tuple[str, str], Path]:
    """The folder of each hook and data set, filled where it was not kept.

    Args:
        config: all of it that is not `datasets` is part of the set-up's key.
        labels: the data sets.
        train_size, test_size, seed: of the texts, as sae-bench counts them.
        d_sae: of the throw-away SAE on which sae-bench runs to fill the folder.
        run: the run.
    """
    from evaluate.labelled.substitute import classes_of, known_to_sae_bench
    from evaluate.throw_away import throw_away_sae

    folders = {}
    for item in labels:
        for hook in context.hooks:
            with context.kept.open(benchmark.name, _inputs(benchmark, config, context, item, hook)) as kept:
                if not kept.is_complete:
                    local = not isinstance(item, HubLabels)
                    texts = load(item, train_size=train_size, test_size=test_size, seed=seed) if local else None
                    classes = classes_of(item, texts)
                    sizes = {"train_size": train_size, "test_size": test_size}
                    with (
                        known_to_sae_bench(item, texts, classes=classes),
                        contextlib.nullcontext() if local else enough_texts(item.name, **sizes),
                        quiet(),
                    ):
                        begin_as_sae_bench(seed)
                        run(throw_away_sae(context, hook, d_sae=d_sae), item, kept.path)
                    (kept.path / CLASSES_FILE).write_text(json.dumps(classes))
                    kept.finish()
            folders[hook, item.name] = kept.path
            context.progress(1)
    return folders


def _inputs(
    benchmark: Benchmark, config: Record, context: BenchmarkContext, labels: Labels, hook: str
) -> dict[str, JsonValue]:
    """Everything that decides activations and probes of a data set at a hook."""
    return {
        **benchmark.version.identity("version"),
        "labels": identity(labels),
        **deciding(config, context, hook),
    }


def deciding(config: Record, context: BenchmarkContext, hook: str) -> dict[str, JsonValue]:
    """What decides activations and probes at a hook, but for the texts."""
    return {
        "settings": {name: value for name, value in config if name != "datasets"},
        "language_model": context.manifest.spec.model.identifying(),
        "compute_dtype": context.manifest.spec.compute_dtype,
        "device": context.device.type,
        "hook": hook,
    }


def begin_as_sae_bench(seed: int) -> None:
    """Random states as sae-bench sets them before an SAE.

    A set-up begins so too, each data set by itself: its probes are then the same whether or not others were kept.
    """
    import random

    import torch

    random.seed(seed)
    torch.manual_seed(seed)


@contextlib.contextmanager
def kept_dataset(labels: Labels, folder: Path) -> Iterator[list[str]]:
    """Inside, sae-bench finds the data set whose set-up is `folder`; gives its classes."""
    from evaluate.labelled.substitute import known_to_sae_bench

    classes: list[str] = json.loads((folder / CLASSES_FILE).read_text())
    with known_to_sae_bench(labels, None, classes=classes), quiet():
        yield classes


def language_model_later(context: BenchmarkContext) -> Any:  # noqa: ANN401 - passes for a HookedTransformer
    """The language model, loaded only if something is asked of it: with a set-up that is kept, nothing is."""
    from evaluate.loaded_model import hooked_later

    return hooked_later(lambda: context.language_model.bridge)
