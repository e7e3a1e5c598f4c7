"""Where a running training can be watched: JSON lines, TensorBoard, Weights & Biases.

None of it decides anything: the record that counts travels in the checkpoint and ends as the artefact's log.jsonl. A
sink that cannot be written is named once and the training goes on.
"""

import importlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from store.atomic import write_bytes
from store.record import Record

METRICS_FILE = "metrics.jsonl"


class MetricsSinks(Record):
    """Where the metrics of a running training go, besides the JSON lines that are always written."""

    tensorboard: str | None = None
    """A folder for TensorBoard's event files, one folder in it per variant."""
    wandb: str | None = None
    """A project of Weights & Biases; one run in it per variant. WANDB_MODE=offline needs no account."""


JSON_LINES_ONLY = MetricsSinks()


class Sink(Protocol):
    """Takes the log records of a training while it runs."""

    def write(self, lines: Mapping[str, Mapping[str, Any]]) -> None:
        """The record of one step: fields by variant."""

    def close(self) -> None:
        """Ends the sink; no record follows."""


class JsonLines:
    """One line per record and variant, whole lines only; what a killed training wrote past its checkpoint is cut."""

    def __init__(self, path: Path, *, first_step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            write_bytes(path, _lines_before(path, first_step))
        self._file = path.open("ab", buffering=0)

    def write(self, lines: Mapping[str, Mapping[str, Any]]) -> None:
        text = "".join(json.dumps({"variant": name, **line}) + "\n" for name, line in lines.items())
        self._file.write(text.encode())

    def close(self) -> None:
        self._file.close()


def _lines_before(path: Path, first_step: int) -> bytes:
    """The whole lines of steps before `first_step`."""
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            continue  # half a line, from a machine that went down
        if line.endswith(b"\n") and step < first_step:
            kept.append(line)
    return b"".join(kept)


class TensorBoard:
    """One folder of event files per variant.

    tensorboardX's SummaryWriter is not used: it writes in a thread that dies of a full disk, after which the training
    would wait for it without end. Its EventsWriter writes at once, and raises OSError here.
    """

    def __init__(self, folder: Path, names: Sequence[str], *, first_step: int) -> None:
        """`first_step`: what earlier files of this folder hold from it on is marked void."""
        from tensorboardX.event_file_writer import EventsWriter  # only here: most runs do without
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._files = {}
        for name in names:
            (folder / name).mkdir(parents=True, exist_ok=True)
            # Every file needs its own name: one that is there would be overwritten.
            self._files[name] = EventsWriter(str(folder / name / "events"), f".{os.getpid()}.{time.time_ns()}")
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._files[name].write_event(self._event(wall_time=time.time(), step=first_step, session_log=start))
            self._files[name].flush()

    def write(self, lines: Mapping[str, Mapping[str, Any]]) -> None:
        for name, line in lines.items():
            values = [self._summary.Value(tag=key, simple_value=value) for key, value in line.items() if key != "step"]
            event = self._event(wall_time=time.time(), step=line["step"], summary=self._summary(value=values))
            self._files[name].write_event(event)
            self._files[name].flush()

    def close(self) -> None:
        for file in self._files.values():
            file.close()


class WeightsAndBiases:
    """One run per variant, named after it and identified by its key, so that a continued training continues it."""

    def __init__(self, project: str, settings: Mapping[str, Mapping[str, Any]], keys: Mapping[str, str]) -> None:
        """`settings` and `keys` by variant."""
        import wandb  # only here: it takes a second, and most runs do without

        try:
            self._runs = self._opened(wandb, project, settings, keys)
        except wandb.errors.Error as error:
            raise ValueError(
                f"expected to open the Weights & Biases project {project!r}, but: {error}. Run `wandb login`, set "
                "WANDB_MODE=offline, or leave --wandb out"
            ) from error

    @staticmethod
    def _opened(
        wandb: Any,  # noqa: ANN401 - a module
        project: str,
        settings: Mapping[str, Mapping[str, Any]],
        keys: Mapping[str, str],
    ) -> dict[str, Any]:
        return {
            name: wandb.init(
                project=project,
                name=name,
                id=keys[name][:32],
                resume="allow",
                reinit="create_new",
                config=dict(settings[name]),
                settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
            )
            for name in settings
        }

    def write(self, lines: Mapping[str, Mapping[str, Any]]) -> None:
        for name, line in lines.items():
            self._runs[name].log({key: value for key, value in line.items() if key != "step"}, step=int(line["step"]))

    def close(self) -> None:
        for run in self._runs.values():
            run.finish()


def check_sinks(sinks: MetricsSinks) -> None:
    """ValueError where what is asked for cannot be had here, before anything is trained."""
    for flag, package, wanted in (("tensorboard", "tensorboardX", sinks.tensorboard), ("wandb", "wandb", sinks.wandb)):
        if wanted is not None:
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise ValueError(
                    f"expected the package {package} for --{flag}, found none ({error}). Run `pip install {package}`, "
                    f"or leave --{flag} out"
                ) from error


class Telemetry:
    """All sinks of one training. The first failure of a sink is named, and the sink left out from then on."""

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self._sinks = dict(sinks)

    def write(self, lines: Mapping[str, Mapping[str, Any]]) -> None:
        """Sends the record of one step to all sinks; figures that are not finite are left out."""
        finite = {
            name: {key: value for key, value in line.items() if math.isfinite(value)} for name, line in lines.items()
        }
        for name, sink in list(self._sinks.items()):
            try:
                sink.write(finite)
            except OSError as error:
                print(f"train: no more metrics in {name}: {error}. The training goes on", file=sys.stderr)
                del self._sinks[name]

    def close(self) -> None:
        """Closes all sinks."""
        for sink in self._sinks.values():
            sink.close()


def open_telemetry(
    folder: Path,
    sinks: MetricsSinks,
    *,
    settings: Mapping[str, Mapping[str, Any]],
    keys: Mapping[str, str],
    first_step: int,
) -> Telemetry:
    """The sinks of one training: `folder`/metrics.jsonl always, the others as asked for.

    `settings` and `keys` by variant; what earlier files hold from `first_step` on is void.
    """
    opened: dict[str, Sink] = {}
    path = folder / METRICS_FILE
    try:
        opened[str(path)] = JsonLines(path, first_step=first_step)
    except OSError as error:
        print(f"train: no metrics in {path}: {error}. The training goes on", file=sys.stderr)
    if sinks.tensorboard is not None:
        opened[sinks.tensorboard] = TensorBoard(Path(sinks.tensorboard), list(settings), first_step=first_step)
    if sinks.wandb is not None:
        opened[f"Weights & Biases project {sinks.wandb}"] = WeightsAndBiases(sinks.wandb, settings, keys)
    return Telemetry(opened)
