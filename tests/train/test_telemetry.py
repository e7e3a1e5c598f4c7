"""Metrics of a running training: whole lines, cut back when it continues; TensorBoard's files; W&B, offline."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from train.telemetry import JsonLines, MetricsSinks, Telemetry, TensorBoard, check_sinks, open_telemetry

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


def events_in(path: Path) -> list[event_pb2.Event]:
    """The events of a file, whose frames are: length (8 bytes), checksum (4), event, checksum (4)."""
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert data[8:12] == struct.pack("<I", masked_crc32c(data[:8]))
        event = data[12 : 12 + length]
        assert data[12 + length : 16 + length] == struct.pack("<I", masked_crc32c(event))
        events.append(event_pb2.Event.FromString(event))
        data = data[16 + length :]
    return events


def test_tensorboard_gets_the_scalars_of_every_variant_at_once(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, ["a", "b"], first_step=0)
    board.write({"a": {"step": 25, "mse": 2.5, "l0": 3.0}, "b": {"step": 25, "mse": 0.5}})
    (path,) = (tmp_path / "a").iterdir()
    assert path.name.startswith("events.out.tfevents.")
    version, _, scalars = events_in(path)  # before it is closed
    assert version.file_version == "brain.Event:2"
    assert (scalars.step, {v.tag: v.simple_value for v in scalars.summary.value}) == (25, {"mse": 2.5, "l0": 3.0})
    (other,) = (tmp_path / "b").iterdir()
    assert [v.simple_value for v in events_in(other)[-1].summary.value] == [0.5]
    board.close()


def test_a_continued_training_marks_later_steps_of_earlier_event_files_void(tmp_path: Path) -> None:
    TensorBoard(tmp_path, ["a"], first_step=0).close()
    (first,) = (tmp_path / "a").iterdir()
    kept = first.read_bytes()
    TensorBoard(tmp_path, ["a"], first_step=20).close()
    assert first.read_bytes() == kept
    (second,) = set((tmp_path / "a").iterdir()) - {first}
    start = events_in(second)[1]
    assert (start.step, start.session_log.status) == (20, event_pb2.SessionLog.START)


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


@pytest.mark.parametrize(("flag", "package"), [("wandb", "wandb"), ("tensorboard", "tensorboardX")])
def test_a_missing_package_is_said_before_anything_is_trained(
    flag: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = (
        rf"expected the package {package} for --{flag}, found none .* `pip install {package}`, or leave --{flag} out"
    )
    with pytest.raises(ValueError, match=message):
        check_sinks(MetricsSinks(**{flag: "study"}))
    check_sinks(MetricsSinks())
