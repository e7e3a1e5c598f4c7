"""The `mdl` benchmark of sae-bench: how many bits the latents of a row take once they are binned.

sae-bench 0.6.0 runs it under `__main__` on a GPU only. Three things are substituted, each while it runs: `loguru`,
which it imports and does not declare; the global `config` that exists under `__main__` alone; and `.cuda()`, on other
devices. Rows are the held-out ones of the activation cache, in the place of SAELens's store: no language model runs,
and BOS is left out. Its figures are doubtful in ways that no substitution mends; `measures` and the remarks say so.
"""

import contextlib
import importlib.util
import logging
import sys
import types
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field, JsonValue

from compute.code_version import CodeVersion
from evaluate.benchmarks.benchmark import Benchmark, EvaluatedSAE, Measurement, NotMeasurable
from evaluate.benchmarks.context import BenchmarkContext
from store.record import Record, plain

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PositiveCount = Annotated[int, Field(gt=0)]
MIN_MAX_PASSES = 10
"""How often sae-bench reads the rows for the largest activations, before it bins them."""
FLOOR = 100.0
"""Below this no latent's largest activation counts: its bins reach from 0 to at least here."""


class MDLConfig(Record):
    """How latents are binned. Names and meanings are sae-bench's."""

    k_values: Annotated[list[PositiveCount], Field(min_length=1)]
    """Latents that are kept when the error of binning is measured; the description length takes no notice of them."""
    num_bins_values: Annotated[list[PositiveCount], Field(min_length=1)]
    random_seed: int
    sae_batch_size: PositiveCount
    """Sequences in a batch and batches at a time: its square is the number of held-out sequences."""
    mse_epsilon_threshold: Annotated[float, Field(gt=0.0)]
    """A binning is accurate enough when its error is below this."""


class _Rows:
    """Held-out rows of one hook, in the place of SAELens's ActivationsStore; over and over, as a data set is read."""

    def __init__(self, rows: "Tensor", num_batches: int, progress: Any) -> None:  # noqa: ANN401 - a callable
        self._batches, self._next, self._progress = rows.chunk(num_batches), 0, progress

    def from_sae(self, *_: object, **__: object) -> "_Rows":
        """This: what sae-bench asks SAELens's class for."""
        return self

    def get_filtered_llm_batch(self) -> "Tensor":
        """The rows of the next sequences, (rows, d) float32."""
        batch = self._batches[self._next % len(self._batches)]
        self._next += 1
        if self._next % len(self._batches) == 0:
            self._progress(1)
        return batch


class _NoModel:
    """In the place of a language model that is not asked for anything."""

    def to(self, device: object) -> "_NoModel":
        """Itself."""
        del device
        return self


def num_held_out_sequences(config: MDLConfig) -> int:
    """Sequences whose rows are read."""
    return config.sae_batch_size**2


def num_steps(config: MDLConfig) -> int:
    """Passes over the rows."""
    return MIN_MAX_PASSES + 2 * len(config.k_values) * len(config.num_bins_values)


def measure(sae: EvaluatedSAE, config: MDLConfig, context: BenchmarkContext, shared: None) -> Measurement:
    """Bins the latents of held-out rows in every way that is asked for.

    Metrics, of sae-bench's `pick_minimum_viable`: the shortest description among the binnings that are accurate
    enough, or among all where none is. description_length (bits per row), mse_loss (sae-bench's name; it is the root of
    the mean squared error per channel, divided by the number of channels), num_bins, within_threshold (1 or 0).
    """
    del shared
    if sae.card.d_sae < max(config.k_values):
        raise NotMeasurable(
            f"It has {sae.card.d_sae} latents, and mdl keeps {max(config.k_values)} (evaluate.mdl.k_values).",
            "Lower that setting, or train it with more latents (d_sae).",
        )
    rows = _held_out_rows(config, context, sae.card.hook)
    with _sae_bench() as main:
        from evaluate.sae_bench import to_sae_bench

        adapted = to_sae_bench(sae.weights, sae.card, device=context.device)
        settings = _settings(config)
        source = _Rows(rows, config.sae_batch_size, context.progress)
        with _substituted(main, settings, source, context.device):
            found: Any = main.run_eval_single_sae(settings, adapted, _NoModel(), str(context.device), dataset_name="")
        picked = main.MDLEvalResultsCollection([main.MDLEvalResult(**entry) for entry in found]).pick_minimum_viable()
        largest = _largest(adapted, rows)
    return Measurement(
        metrics={
            "description_length": float(picked.description_length),
            "mse_loss": float(picked.mse_loss),
            "num_bins": float(picked.num_bins),
            "within_threshold": float(picked.within_threshold),
        },
        basis={"rows": len(rows), "latents": sae.card.d_sae, "binnings": len(found)},
        remarks=_remarks(config, found, largest.numpy()),
        details={"sae_bench": _json(found)},
    )


def _remarks(config: MDLConfig, found: list[dict[str, Any]], largest: "np.ndarray[Any, Any]") -> tuple[str, ...]:
    remarks = [
        "These bits depend on the scale of the activations: sae-bench bins every latent from 0 to its largest "
        f"activation or {FLOOR:.0f}, whichever is larger, and here {int((largest < FLOOR).sum())} of {len(largest)} "
        f"latents stay below {FLOOR:.0f}."
    ]
    if not any(entry["within_threshold"] for entry in found):
        remarks.append(
            f"No binning has an error below {config.mse_epsilon_threshold:g}, so this is the shortest description "
            "of all, accurate or not."
        )
    if (largest == 0.0).all():
        remarks.append("No latent fires on these rows: 0 bits are no merit.")
    return tuple(remarks)


def _held_out_rows(config: MDLConfig, context: BenchmarkContext, hook: str) -> "Tensor":
    """Rows (rows, d) float32 of the first sequences, on the device; BOS has none."""
    import torch

    numbers = np.arange(num_held_out_sequences(config) * context.manifest.spec.rows_per_sequence)
    bits = context.held_out_cache.rows(hook, numbers, split="held_out")
    return torch.from_numpy((bits.astype(np.uint32) << 16).view(np.float32)).to(context.device)


def _largest(sae: Any, rows: "Tensor") -> "Tensor":  # noqa: ANN401 - a sae-bench SAE
    import torch

    with torch.no_grad():
        return torch.stack([sae.encode(batch).amax(dim=0) for batch in rows.split(4096)]).amax(dim=0).cpu()


def _settings(config: MDLConfig) -> Any:  # noqa: ANN401 - sae-bench's record
    from sae_bench.evals.mdl.eval_config import MDLEvalConfig

    values: Any = plain(config)
    return MDLEvalConfig(**values)


def _json(found: list[dict[str, Any]]) -> JsonValue:
    return [{name: value for name, value in entry.items() if name != "bins"} for entry in found]


@contextlib.contextmanager
def _sae_bench() -> Iterator[Any]:
    """sae-bench's module; its messages go to Python's logging where `loguru` is not installed."""
    lacking = "loguru" not in sys.modules and importlib.util.find_spec("loguru") is None
    if lacking:
        stand_in = types.ModuleType("loguru")
        stand_in.__dict__["logger"] = logging.getLogger("sae_bench.mdl")
        stand_in.__dict__["logger"].setLevel(logging.ERROR)
        sys.modules["loguru"] = stand_in
    try:
        from sae_bench.evals.mdl import main

        yield main
    finally:
        if lacking:
            del sys.modules["loguru"]


@contextlib.contextmanager
def _substituted(main: Any, settings: Any, rows: _Rows, device: "torch.device") -> Iterator[None]:  # noqa: ANN401 - sae-bench's
    import torch

    def stays(tensor: "Tensor", *_: object, **__: object) -> "Tensor":
        return tensor

    store, cuda = main.ActivationsStore, torch.Tensor.cuda
    main.config, main.ActivationsStore = settings, rows
    if device.type != "cuda":
        torch.Tensor.cuda = stays  # type: ignore[method-assign, assignment]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=r"torch\.searchsorted\(\)", category=UserWarning
            )  # slow, not wrong
            yield
    finally:
        main.ActivationsStore = store
        del main.config
        torch.Tensor.cuda = cuda  # type: ignore[method-assign]


BENCHMARK = Benchmark(
    name="mdl",
    config=MDLConfig,
    needs=frozenset({"held_out_rows"}),
    version=CodeVersion(
        number=1,
        files=(
            "evaluate/benchmarks/benchmark.py",
            "evaluate/benchmarks/context.py",
            "evaluate/benchmarks/mdl.py",
            "evaluate/sae_bench.py",
            "language_model/hooks.py",
            "store/sae/weights.py",
        ),
        code_sha256="d3027bf120f061c852c89a2405d03de4fce5ed4e3be5ac0ef9a4164b48f0febb",
    ),
    metrics={
        "description_length": "lower",
        "mse_loss": "lower",
        "num_bins": "neither",
        "within_threshold": "neither",
    },
    headlines=("description_length",),
    measures="How many bits the latents of a row take when they are binned (sae-bench mdl). Its figures are doubtful: "
    "every latent is binned from 0 to at least 100, whatever it reaches, so they depend on the rows' scale; zeros "
    "are rebuilt as the middle of the first bin, so the error is mostly that of latents that do not fire; k does not "
    "enter the bits; and the error named mse is its root divided by the number of channels. Do not rank SAEs by it.",
    measure=measure,
    num_held_out_sequences=num_held_out_sequences,
    num_steps=num_steps,
)
