"""Metrics of a running training: whole lines, cut back when it continues; TensorBoard's files; W&B, offline."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from train.telemetry import JsonLines, MetricsSinks, Telemetry, open_telemetry
from train.tensorboard import EventFile, event, framed, scalars

ROOT = Path(__file__).resolve().parents[2]


def lines_of(step: int) -> dict[str, dict[str, float]]:
    return {"a": {"step": step, "mse": 1.5, "l0": float("inf")}, "b": {"step": step, "mse": 2.5, "l0": 3.0}}


def test_each_record_is_a_whole_line_per_variant_at_once(tmp_path: Path) -> None:
    telemetry = open_telemetry(tmp_path, MetricsSinks(), settings={"a": {}, "b": {}}, keys={}, first_step=0)
    telemetry.write(lines_of(0))
    text = (tmp_path / "metrics.jsonl").read_text()  # before it is closed
    assert [json.loads(line) for line in text.splitlines()] == [
        {"variant": "a", "step": 0, "mse": 1.5},  # what is not finite is left out
        {"variant": "b", "step": 0, "mse": 2.5, "l0": 3.0},
    ]
    telemetry.close()


def test_what_was_written_past_the_checkpoint_is_cut_when_training_continues(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    kept = '{"variant": "a", "step": 0, "mse": 1.0}\n{"variant": "a", "step": 5, "mse": 1.0}\n'
    path.write_text(kept + '{"variant": "a", "step": 10, "mse": 1.0}\nnonsense\n{"variant": "a", "st')
    sink = JsonLines(path, first_step=7)
    assert path.read_text() == kept
    sink.write({"a": {"step": 10, "mse": 2.0}})
    sink.close()
    assert path.read_text() == kept + '{"variant": "a", "step": 10, "mse": 2.0}\n'


def test_a_sink_that_cannot_be_written_is_named_once_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    class Full:
        def write(self, lines: object) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            raise AssertionError

    telemetry = Telemetry({"the file": Full()})
    telemetry.write(lines_of(0))
    telemetry.write(lines_of(5))
    telemetry.close()
    err = capsys.readouterr().err
    assert err == "train: no more metrics in the file: [Errno 28] No space left on device. The training goes on\n"


def test_an_event_is_what_tensorboard_itself_writes() -> None:
    # Bytes of RecordWriter and Event(wall_time=1.5, step=300, summary=(mse 2.5)) of tensorboard 2.20.0.
    written = "1a00000000000000129bd82d09000000000000f83f10ac022a0c0a0a0a036d73651500002040c56bd272"
    assert framed(event(1.5, 300, scalars({"mse": 2.5}))).hex() == written


def test_an_event_file_begins_with_its_version_and_the_step_from_which_earlier_ones_are_void(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "baseline", first_step=20)
    file.write(25, {"mse": 2.5})
    file.close()
    (path,) = (tmp_path / "baseline").iterdir()
    assert path.name.startswith("events.out.tfevents.")
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(data[12 : 12 + length])
        data = data[16 + length :]
    assert [found[9:] for found in events] == [
        b"\x10\x00\x1a\x0dbrain.Event:2",
        b"\x10\x14\x3a\x02\x08\x01",  # step 20, session log: start
        b"\x10\x19" + scalars({"mse": 2.5}),
    ]


WANDB = """
from train.telemetry import WeightsAndBiases
sink = WeightsAndBiases("study", {"a": {"l1": 1.0}, "b": {"l1": 2.0}}, {"a": "a" * 64, "b": "b" * 64})
for step in (0, 5, 10):
    sink.write({"a": {"step": step, "mse": 1.0}, "b": {"step": step, "mse": 2.0}})
sink.close()
"""


def test_weights_and_biases_gets_one_run_per_variant(tmp_path: Path) -> None:
    # The real package in its offline mode, in a process of its own: it starts a service beside it.
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", WANDB], env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    runs = sorted(path.name for path in (tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert runs == [f"run-{'a' * 32}.wandb", f"run-{'b' * 32}.wandb"]
    assert all(path.stat().st_size > 0 for path in (tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_a_missing_package_is_said_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    from train.telemetry import check_sinks

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"expected the package wandb for --wandb, found none .* leave --wandb out"):
        check_sinks(MetricsSinks(wandb="study"))
    check_sinks(MetricsSinks())
