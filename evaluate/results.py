"""The files that a benchmark leaves: results/<benchmark>/<variant>.json for each variant, format "result/3".

A file holds its own digest, so that an edited number is refused. What is too much for JSON is in <variant>.safetensors
beside it, which is written first. Where a benchmark did not run, `_not_run.json` says why and what to do; no variant
has such a name.
"""

import hashlib
import math
from pathlib import Path
from typing import Any, Literal, Self

import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import JsonValue, model_validator

from evaluate.benchmarks.benchmark import Benchmark, Measurement, NotRun
from evaluate.benchmarks.registry import BENCHMARKS, wrong_metrics
from store.atomic import file_sha256, parse_json, read_json, write_bytes, write_json
from store.errors import DamagedFile, StoreError
from store.identity import Count
from store.record import Record, digest, plain
from store.record_file import parse_record_file, read_plain_record, write_record_file

FORMAT = "result/3"
NOT_RUN_FORMAT = "not-run/2"
NOT_RUN_FILE = "_not_run.json"
ARRAYS_SUFFIX = ".safetensors"


class BenchmarkResult(Record):
    """Metrics of one benchmark on one variant, and the digest of everything that they depend on."""

    format: Literal["result/3"]
    benchmark: str
    variant: str
    key: str
    """Digest of `inputs`: a result is reused exactly when it is the same."""
    inputs: dict[str, JsonValue]
    """What the metrics depend on: benchmark version and settings, SAE weights, held-out text, language model."""
    metrics: dict[str, float]
    basis: dict[str, Count]
    """On how much the metrics rest: numbers of rows, sequences, texts, tasks, latents."""
    standard_errors: dict[str, float]
    """Sampling error of some of the metrics: one standard deviation."""
    remarks: list[str]
    """Sentences about what is no score."""
    details: dict[str, JsonValue]
    arrays_sha256: str | None = None
    """Of `<variant>.safetensors`, where there is one."""
    not_measured: str | None = None
    """Why this SAE has no metrics where others have, in whole sentences; None where it has."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.key != digest(self.inputs):
            raise ValueError(f"expected key to be the digest of inputs, {digest(self.inputs)}, got {self.key}")
        has_metrics = bool(self.metrics) and all(math.isfinite(value) for value in self.metrics.values())
        if self.not_measured is not None and self.metrics:
            raise ValueError(f"expected no metrics where nothing was measured, got {self.metrics}")
        if self.not_measured is None and not has_metrics:
            raise ValueError(f"expected at least one metric, all finite, got {self.metrics}")
        errors = self.standard_errors
        if not all(math.isfinite(error) and error >= 0.0 for error in errors.values()):
            raise ValueError(f"expected standard errors that are finite and not below zero, got {errors}")
        return self

    def detail_numbers(self, name: str) -> list[float]:
        """The list of numbers `name` of the details; a StoreError where there is none."""
        found = self.details.get(name)
        numbers = [value for value in found if isinstance(value, float | int)] if isinstance(found, list) else []
        if not isinstance(found, list) or len(numbers) != len(found):
            raise StoreError(
                f"expected a list of numbers as details.{name} in the result of {self.benchmark} for {self.variant}, "
                "found none. Remove the file and evaluate again"
            )
        return numbers


def arrays_bytes(measurement: Measurement) -> bytes | None:
    """The arrays of a measurement as the bytes of their file; None where it has none."""
    return safetensors.numpy.save(dict(measurement.arrays)) if measurement.arrays else None


def make_result(
    benchmark: Benchmark,
    variant: str,
    inputs: dict[str, Any],
    measurement: Measurement,
    arrays: bytes | None = None,
) -> BenchmarkResult:
    """The record of one measurement; `arrays` are its `arrays_bytes`."""
    return BenchmarkResult(
        format="result/3",
        benchmark=benchmark.name,
        variant=variant,
        key=digest(inputs),
        inputs=inputs,
        metrics=measurement.metrics,
        basis=measurement.basis,
        standard_errors=measurement.standard_errors,
        remarks=list(measurement.remarks),
        details=measurement.details,
        arrays_sha256=None if arrays is None else hashlib.sha256(arrays).hexdigest(),
    )


def not_measured(benchmark: Benchmark, variant: str, inputs: dict[str, Any], why: NotRun) -> BenchmarkResult:
    """The record of an SAE on which a benchmark that measures others cannot be measured."""
    return BenchmarkResult(
        format="result/3", benchmark=benchmark.name, variant=variant, key=digest(inputs), inputs=inputs, metrics={},
        basis={}, standard_errors={}, remarks=[], details={}, not_measured=f"{why.reason} {why.advice}",
    )  # fmt: skip


def write_result(folder: Path, result: BenchmarkResult, arrays: bytes | None = None) -> None:
    """Writes `<folder>/<variant>.json` at once and whole; what it refers to is there before it."""
    if arrays is not None:
        write_bytes(arrays_path(folder, result.variant), arrays)
    write_record_file(result_path(folder, result.variant), result)


def read_arrays(folder: Path, result: BenchmarkResult) -> dict[str, NDArray[Any]]:
    """The arrays beside a result; a DamagedFile where they are missing or not those that it was written with."""
    path = arrays_path(folder, result.variant)
    data = path.read_bytes() if path.is_file() else b""
    got = hashlib.sha256(data).hexdigest() if path.is_file() else "no file"
    if result.arrays_sha256 is None or got != result.arrays_sha256:
        raise DamagedFile(
            f"expected {path} with SHA-256 {result.arrays_sha256}, got {got}. Run `dvc checkout {folder}`, or remove "
            f"{result_path(folder, result.variant).name} beside it and evaluate again"
        )
    try:
        return safetensors.numpy.load(data)
    except safetensors.SafetensorError as error:
        raise DamagedFile(f"expected safetensors in {path}: {error}. Remove it and evaluate again") from error


def has_arrays(result: BenchmarkResult, path: Path | None) -> bool:
    """Whether the file at `path` holds what belongs to the result; true of a result to which nothing belongs."""
    if result.arrays_sha256 is None:
        return True
    return path is not None and path.is_file() and file_sha256(path) == result.arrays_sha256


def read_result(path: Path) -> BenchmarkResult:
    """Reads and checks one result file; a StoreError names the file and what is wrong with it."""
    data = path.read_bytes()
    _check_format(parse_json(data, where=str(path)), path, FORMAT)
    result = parse_record_file(
        BenchmarkResult, data, where=str(path), remedy="Remove it and evaluate again, or run `dvc checkout results`"
    )
    if result.benchmark not in BENCHMARKS:
        raise StoreError(f"expected a result of {' or '.join(BENCHMARKS)} in {path}, got one of {result.benchmark!r}")
    if result.not_measured is None and (problem := wrong_metrics(BENCHMARKS[result.benchmark], result.metrics)):
        raise StoreError(
            f"expected the metrics of {result.benchmark} in {path}, but {problem}. Remove the file and evaluate again"
        )
    return result


def _check_format(value: object, path: Path, form: str) -> None:
    if not isinstance(value, dict) or value.get("format") != form:
        found = value.get("format") if isinstance(value, dict) else type(value).__name__
        raise StoreError(
            f'expected a benchmark result of format "{form}" in {path}, got {found!r}. '
            "Remove the file and evaluate again"
        )


class NotRunRecord(Record):
    """Why a benchmark was not run."""

    format: Literal["not-run/2"] = "not-run/2"
    benchmark: str
    settings: str | None
    """Digest of the benchmark's settings then, None where it was switched off: with others the reason may be gone."""
    reason: str
    advice: str


def switched_off(benchmark: str) -> NotRun:
    """Why a benchmark without settings is not run."""
    return NotRun(f"evaluate.{benchmark} is null in params.yaml.", "Give it settings there to run it.")


def write_not_run(folder: Path, benchmark: str, why: NotRun, *, settings: Record | None) -> None:
    """Writes down that a benchmark was not run with these settings, and why."""
    write_json(
        folder / NOT_RUN_FILE,
        NotRunRecord(benchmark=benchmark, settings=_settings_digest(settings), reason=why.reason, advice=why.advice),
    )


def read_not_run(folder: Path, *, settings: Record | None) -> NotRun | None:
    """Why the benchmark of this folder of results was not run with these settings.

    None where it was, or where the record is of other settings. A StoreError for a record that cannot be read.
    """
    try:
        _check_format(read_json(folder / NOT_RUN_FILE), folder / NOT_RUN_FILE, NOT_RUN_FORMAT)
    except FileNotFoundError:
        return None
    record = read_plain_record(NotRunRecord, folder / NOT_RUN_FILE)
    return NotRun(record.reason, record.advice) if record.settings == _settings_digest(settings) else None


def _settings_digest(settings: Record | None) -> str | None:
    return None if settings is None else digest(plain(settings))


def result_path(folder: Path, variant: str) -> Path:
    """Where the result of `variant` lies in a benchmark's folder."""
    return folder / f"{variant}.json"


def arrays_path(folder: Path, variant: str) -> Path:
    """Where the arrays that belong to the result of `variant` lie, if there are any."""
    return folder / f"{variant}{ARRAYS_SUFFIX}"
