"""The stage as a whole on a small real cache: what it writes, reuses, refuses, and survives."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from store.errors import Busy, DamagedFile, IncompleteCache
from store.read.cache import ActivationCache
from store.sae.artefact import load_sae, read_log
from store.sae.weights import decode, encode
from train.checkpoint import load_checkpoint
from train.config import VARIANTS, TrainConfig, VariantConfig
from train.run import run
from train.steps.make import group_bytes
from train.task import TrainingResources
from train.variants import resolve_variants

Train = Callable[..., dict[str, bytes]]
HOOK = "blocks.1.hook_resid_post"
ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 32  # 1024 rows in batches of 64, twice

PROGRAM = """
import json, sys
from pathlib import Path
from train.config import VARIANTS, TrainConfig
from train.run import run
from train.task import TrainingResources
cache, folder, settings, variants, every = json.loads(sys.argv[1])
run(TrainConfig.model_validate(settings), VARIANTS.validate_python(variants), cache=Path(cache),
    output=Path(folder) / "models", scratch=Path(folder) / "scratch", reuse=False,
    resources=TrainingResources(device="cpu", num_threads=1, checkpoint_every_seconds=every))
"""


def start(
    cache: Path, folder: Path, settings: dict[str, Any], variants: dict[str, Any], every: float
) -> "subprocess.Popen[bytes]":
    """The stage in a process of its own, its stderr in folder/stderr."""
    arguments = json.dumps([str(cache), str(folder), settings, variants, every])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    folder.mkdir(exist_ok=True)
    with (folder / "stderr").open("wb") as stderr:
        return subprocess.Popen([sys.executable, "-c", PROGRAM, arguments], stderr=stderr, env=environment)


def wait_for_checkpoint(process: "subprocess.Popen[bytes]", folder: Path, *, after_step: int = 0) -> Path:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        for found in (folder / "scratch").glob("tasks/*/checkpoint-*.safetensors"):
            if int(found.stem.removeprefix("checkpoint-")) > after_step:
                return found
        time.sleep(0.005)
    raise AssertionError(f"no checkpoint appeared: {(folder / 'stderr').read_text()}")


@pytest.fixture
def checkpoint(cache_folder: Path, tmp_path: Path, settings: dict[str, Any], five: dict[str, VariantConfig]) -> Path:
    """What is left in the scratch folder of a training that failed while it wrote its artefacts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.task.save_group", None)
        with pytest.raises(TypeError):
            run(
                TrainConfig.model_validate(settings),
                five,
                cache=cache_folder,
                output=tmp_path / "models",
                scratch=tmp_path / "scratch",
                resources=TrainingResources(device="cpu", num_threads=1, checkpoint_every_seconds=0.0),
                reuse=False,
            )
    return sorted((tmp_path / "scratch").glob("tasks/*/checkpoint-*.safetensors"))[-1]


def checkpoint_head(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        head: dict[str, Any] = json.loads(file.metadata()["head"])
    return head


def test_every_variant_leaves_a_complete_artefact(
    train_files: Train, five: dict[str, VariantConfig], tmp_path: Path
) -> None:
    files = train_files(five)
    names = ("card.json", "cfg.json", "log.jsonl", "sae_weights.safetensors")
    assert sorted(files) == sorted(f"{variant}/{name}" for variant in five for name in names)
    left = {path.name for path in (tmp_path / "scratch").iterdir() if not path.name.startswith(".")}
    assert left == set()  # no checkpoints, unfinished SAEs or plan
    weights, card = load_sae(tmp_path / "models" / "adaptive")
    assert (card.name, card.hook, card.num_steps, card.num_training_rows, card.d_sae) == (
        "adaptive",
        HOOK,
        32,
        2048,
        24,
    )
    assert card.variant["lambda"] == {"kind": "learned", "start": 1.0, "parametrisation": "log"}
    assert (card.variant["l1"], card.variant["lr"], card.variant["seed"]) == (0.5, 3e-3, 0)
    assert (card.train["batch_rows"], card.train["seed"]) == (64, 0)
    # Lambda fell from 1 within 5 steps, and then followed P, which falls slowly: log lambda is 1 % from its curve.
    lam, penalty = float(card.final["lambda"]), float(card.final["penalty"])
    assert card.final["lambda_residual"] == pytest.approx(lam * penalty + 0.2 * math.log(lam), rel=1e-9)
    assert card.final["lambda_state"] == "on its curve"
    torch.testing.assert_close(weights.W_dec.norm(dim=1), torch.ones(24), rtol=0, atol=1e-6)


def test_a_log_line_holds_terms_that_add_up(train_files: Train, five: dict[str, VariantConfig], tmp_path: Path) -> None:
    train_files(five)
    for name in five:
        lines = read_log(tmp_path / "models" / name)
        assert [line["step"] for line in lines] == [0, 5, 10, 15, 20, 25, 30, 31]
        assert [line["rows"] for line in lines][-1] == NUM_STEPS * 64
        for line in lines:
            lam = line["lambda"]
            loss = line["mse"] + line["sparsity_term"] + line["auxiliary_term"] + lam * line["scaled_penalty"]
            assert line["scaled_penalty"] == pytest.approx(line["penalty"], rel=1e-5)  # penalty_scale is `sum`
            if name.startswith("adaptive"):
                loss += 0.1 * math.log(lam) ** 2
                residual = lam * line["scaled_penalty"] + 0.2 * math.log(lam)
                assert line["lambda_residual"] == pytest.approx(residual, rel=1e-9, abs=1e-9)
            else:
                assert "lambda_residual" not in line
            assert line["loss"] == pytest.approx(loss, rel=1e-9)
            # F = 24, d = 16: 24^2 / 16 - 24 = 12
            assert line["penalty_lower_bound"] == 12.0
            assert line["penalty"] == pytest.approx(12.0 + line["penalty_excess"], rel=1e-5)
    scheduled = read_log(tmp_path / "models" / "schedule-0p1-10")
    assert (scheduled[0]["lambda"], scheduled[-1]["lambda"]) == (0.1, 10.0)


def test_all_variants_of_a_seed_start_alike_and_a_different_seed_does_not(
    train_files: Train, tmp_path: Path, section: dict[str, Any]
) -> None:
    six = {**section, "other": {"lambda": {"kind": "fixed", "value": 0.0}, "seed": 1}}
    train_files(VARIANTS.validate_python(six))
    first = {name: read_log(tmp_path / "models" / name)[0] for name in six}
    assert len({first[name]["penalty"] for name in section}) == 1
    assert first["fixed-1"]["mse"] == pytest.approx(first["baseline"]["mse"], rel=1e-6)
    assert first["other"]["penalty"] != first["baseline"]["penalty"]


def test_explained_variance_of_the_artefact_on_raw_rows_is_that_of_the_log(
    train_files: Train, five: dict[str, VariantConfig], cache_folder: Path, tmp_path: Path
) -> None:
    train_files(five, num_epochs=40, lr=1e-2, lr_decay_fraction=0.5)
    cache = ActivationCache(cache_folder)
    x = torch.from_numpy(cache.rows(HOOK, list(range(1024)))).view(torch.bfloat16).float()
    mean = torch.tensor(cache.manifest.moments[HOOK].mean)
    for name in five:
        weights, card = load_sae(tmp_path / "models" / name)
        a = encode(weights, x)
        explained = 1.0 - float((x - decode(weights, a)).square().sum() / (x - mean).square().sum())
        assert explained > 0.8
        # 10 batches of 64 rows against all 1024 of them
        assert explained == pytest.approx(float(card.final["explained_variance"]), abs=0.03)
        assert float((a > 0).sum(1).float().mean()) == pytest.approx(float(card.final["l0"]), rel=0.1)


def test_a_group_gives_each_sae_what_it_gets_alone(
    train_files: Train, five: dict[str, VariantConfig], tmp_path: Path
) -> None:
    # 64 steps. Products of other shapes round differently in the last bits, which Adam's first steps enlarge.
    train_files(five, num_epochs=4)
    together = {name: load_sae(tmp_path / "models" / name) for name in five}
    for name, variant in five.items():
        train_files({name: variant}, num_epochs=4)
        weights, card = load_sae(tmp_path / "models" / name)
        for key, tensor in weights.tensors().items():
            torch.testing.assert_close(tensor, together[name][0].tensors()[key], rtol=1e-3, atol=1e-4)
        assert card.key == together[name][1].key
        assert card.final["lambda"] == pytest.approx(together[name][1].final["lambda"], rel=1e-4)


def test_the_same_run_twice_gives_the_same_bytes(train_files: Train, five: dict[str, VariantConfig]) -> None:
    assert train_files(five) == train_files(five)


def test_how_often_the_log_is_written_does_not_touch_the_weights(
    train_files: Train, five: dict[str, VariantConfig]
) -> None:
    often, seldom = train_files(five, log_every_steps=1), train_files(five, log_every_steps=1000)
    for name in five:
        assert often[f"{name}/sae_weights.safetensors"] == seldom[f"{name}/sae_weights.safetensors"]


def test_two_learning_rates_in_a_group_are_both_used(
    train_files: Train, tmp_path: Path, section: dict[str, Any]
) -> None:
    two = {"slow": {**section["baseline"], "lr": 1e-9}, "fast": {**section["baseline"], "lr": 1e-2}}
    train_files(VARIANTS.validate_python(two))
    slow, fast = (read_log(tmp_path / "models" / name) for name in ("slow", "fast"))
    assert slow[-1]["penalty"] == pytest.approx(slow[0]["penalty"], rel=1e-5)
    assert abs(fast[-1]["penalty"] - fast[0]["penalty"]) > 0.1


def test_per_latent_divides_the_penalty_by_d_sae(train_files: Train, tmp_path: Path) -> None:
    # lambda 24 on P / 24 is lambda 1 on P
    train_files(
        VARIANTS.validate_python({"v": {"lambda": {"kind": "fixed", "value": 24.0}}}), penalty_scale="per_latent"
    )
    scaled, _ = load_sae(tmp_path / "models" / "v")
    train_files(VARIANTS.validate_python({"v": {"lambda": {"kind": "fixed", "value": 1.0}}}))
    plain, _ = load_sae(tmp_path / "models" / "v")
    torch.testing.assert_close(scaled.W_dec, plain.W_dec, rtol=1e-4, atol=1e-5)


def test_dead_latents_are_those_that_have_not_fired_for_long(
    train_files: Train, tmp_path: Path, section: dict[str, Any]
) -> None:
    # An L1 that outweighs everything silences all latents; they are dead once 512 rows (8 batches) have passed without.
    train_files(VARIANTS.validate_python({"v": {**section["baseline"], "l1": 1e4, "lr": 0.1}}), num_epochs=4)
    lines = read_log(tmp_path / "models" / "v")
    assert lines[0]["dead_latents"] == 0
    assert lines[-1]["dead_latents"] == 24
    assert lines[-1]["l0"] == 0.0


def test_a_killed_training_continues_to_the_same_bytes(
    cache_folder: Path, tmp_path: Path, settings: dict[str, Any], section: dict[str, Any], train_files: Train,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    # One of the variants diverges before the kill, and there is another amount of memory after it.
    settings["num_epochs"] = 12
    section["wild"] = {**section["baseline"], "lr": 1e30}
    killed = start(cache_folder, tmp_path, settings, section, 0.0)
    found = wait_for_checkpoint(killed, tmp_path, after_step=20)
    killed.send_signal(signal.SIGKILL)
    killed.wait(timeout=60)
    assert 20 <= checkpoint_head(max(found.parent.glob("checkpoint-*.safetensors")))["num_steps_done"] < 12 * 16
    assert not (tmp_path / "models").exists()

    # What it had logged by then could be read.
    lines = [json.loads(line) for line in (found.parent / "metrics.jsonl").read_text().splitlines()]
    assert {(line["step"], line["variant"]) for line in lines} >= {(s, "adaptive") for s in (0, 5, 10, 15, 20)}
    assert {line["variant"] for line in lines if line["step"] >= 5} == set(section) - {"wild"}

    variants = VARIANTS.validate_python(section)
    continued = train_files(variants, num_epochs=12, budget_bytes=1)
    err = capsys.readouterr().err
    assert "6 variants in 1 group of 6; 1 pass over the data" in err  # as it began
    assert "train: continues after step" in err
    assert continued == train_files(variants, num_epochs=12)


def test_sigterm_saves_and_exits_with_a_message(
    cache_folder: Path, tmp_path: Path, settings: dict[str, Any], section: dict[str, Any]
) -> None:
    settings["num_epochs"] = 40
    process = start(cache_folder, tmp_path, settings, section, 0.0)
    found = wait_for_checkpoint(process, tmp_path)
    process.terminate()
    assert process.wait(timeout=60) == 1
    stderr = (tmp_path / "stderr").read_text()
    assert "train: stopped by SIGTERM after step" in stderr
    assert "Run the same command again to continue" in stderr
    assert "Traceback" not in stderr
    assert checkpoint_head(max(found.parent.glob("checkpoint-*.safetensors")))["position"]["epoch"] < 40


def test_only_a_changed_variant_is_trained_again(
    train_files: Train, five: dict[str, VariantConfig], capsys: pytest.CaptureFixture[str], section: dict[str, Any]
) -> None:
    before = train_files(five)
    changed = VARIANTS.validate_python({**section, "fixed-1": {"lambda": {"kind": "fixed", "value": 2.0}}})
    capsys.readouterr()
    after = train_files(changed, reuse=True)
    err = capsys.readouterr().err
    assert [name for name in five if f"{name} is unchanged and reused" in err] == [
        "baseline", "adaptive", "schedule-0p1-10", "adaptive-high",
    ]  # fmt: skip
    assert {path for path in before if before[path] != after[path]} == {
        "fixed-1/card.json", "fixed-1/log.jsonl", "fixed-1/sae_weights.safetensors",
    }  # fmt: skip


def test_nothing_is_trained_when_nothing_changed(
    train_files: Train, five: dict[str, VariantConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = train_files(five)
    monkeypatch.setattr("train.task.train_to_end", None)
    assert train_files(five, reuse=True) == before


def test_a_removed_variant_goes_and_a_renamed_one_is_not_trained_again(
    train_files: Train, five: dict[str, VariantConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = train_files(five)
    monkeypatch.setattr("train.task.train_to_end", None)
    after = train_files({"adaptive": five["adaptive"], "renamed": five["baseline"]}, reuse=True)
    assert {path.split("/")[0] for path in after} == {"adaptive", "renamed"}
    assert load_sae(tmp_path / "models" / "renamed")[1].name == "renamed"
    assert json.loads(after["renamed/cfg.json"])["metadata"]["variant"] == "renamed"
    for file in ("sae_weights.safetensors", "log.jsonl"):
        assert after[f"renamed/{file}"] == before[f"baseline/{file}"]
    assert json.loads(after["renamed/card.json"]) == {**json.loads(before["baseline/card.json"]), "name": "renamed"}


def test_variants_that_differ_in_name_alone_are_trained_once(
    train_files: Train, section: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    files = train_files(VARIANTS.validate_python({"a": section["fixed-1"], "b": section["fixed-1"]}))
    assert "train: 1 variants in 1 group of 1" in capsys.readouterr().err
    assert files["a/sae_weights.safetensors"] == files["b/sae_weights.safetensors"]
    assert [json.loads(files[f"{name}/card.json"])["name"] for name in "ab"] == ["a", "b"]


@pytest.mark.parametrize(
    ("change", "reused"),
    [
        ({"lambda_lr": 0.01}, {"baseline", "fixed-1", "schedule-0p1-10"}),
        ({"lambda_regularizer": 0.2}, {"baseline", "fixed-1", "schedule-0p1-10"}),
        ({"l1": 0.6}, set()),
        ({"seed": 1}, set()),
        ({"log_every_steps": 6}, set()),
    ],
)
def test_a_setting_retrains_the_variants_that_it_touches(
    train_files: Train, five: dict[str, VariantConfig], change: dict[str, Any], reused: set[str], tmp_path: Path
) -> None:
    train_files(five)
    before = {name: (tmp_path / "models" / name / "card.json").stat().st_ino for name in five}
    train_files(five, reuse=True, **change)
    after = {name: (tmp_path / "models" / name / "card.json").stat().st_ino for name in five}
    assert {name for name in five if before[name] == after[name]} == reused


def test_a_damaged_earlier_artefact_is_trained_again(
    train_files: Train, five: dict[str, VariantConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = train_files(five)
    path = tmp_path / "models" / "baseline" / "sae_weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    (tmp_path / "models" / "adaptive" / "log.jsonl").unlink()
    after = train_files(five, reuse=True)
    assert "baseline of an earlier run cannot be reused" in capsys.readouterr().err
    assert sorted(after) == sorted(before)
    for name in five:
        load_sae(tmp_path / "models" / name)


@pytest.mark.parametrize("damage", ["truncate", "flip", "foreign", "empty"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_continues(
    checkpoint: Path,
    damage: str,
    train_files: Train,
    five: dict[str, VariantConfig],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = checkpoint.read_bytes()
    if damage == "truncate":
        checkpoint.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        checkpoint.write_bytes(data[:-9] + bytes([data[-9] ^ 255]) + data[-8:])
    elif damage == "foreign":
        checkpoint.write_bytes(data.replace(checkpoint_head(checkpoint)["key"].encode(), b"0" * 64))
    else:
        checkpoint.write_bytes(b"")
    capsys.readouterr()
    after = train_files(five)
    err = capsys.readouterr().err
    assert f"{checkpoint}" in err
    assert "It is passed over; the checkpoint before it is tried" in err
    assert "train: continues after step 31 of a stopped training" in err
    assert after == train_files(five)


def test_without_any_sound_checkpoint_training_starts_from_the_beginning(
    checkpoint: Path, train_files: Train, five: dict[str, VariantConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    for path in checkpoint.parent.glob("checkpoint-*"):
        path.write_bytes(b"no checkpoint")
    capsys.readouterr()
    after = train_files(five)
    assert "continues after step" not in capsys.readouterr().err
    assert after == train_files(five)


def test_the_last_two_checkpoints_are_kept(checkpoint: Path) -> None:
    names = sorted(path.name for path in checkpoint.parent.glob("checkpoint-*"))
    assert names == ["checkpoint-000000000031.safetensors", "checkpoint-000000000032.safetensors"]


def test_a_training_that_had_only_its_artefacts_to_write_writes_them(
    checkpoint: Path, train_files: Train, five: dict[str, VariantConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert checkpoint_head(checkpoint)["num_steps_done"] == NUM_STEPS
    after = train_files(five)
    assert "train: continues after step 32 of a stopped training" in capsys.readouterr().err
    assert not checkpoint.parent.exists()
    assert after == train_files(five)


def test_a_checkpoint_that_cannot_be_written_stops_nothing(
    cache_folder: Path,
    tmp_path: Path,
    five: dict[str, VariantConfig],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("train.loop.save_checkpoint", full)
    run(
        TrainConfig.model_validate(settings),
        five,
        cache=cache_folder,
        output=tmp_path / "models",
        scratch=tmp_path / "scratch",
        resources=TrainingResources(device="cpu", num_threads=1, checkpoint_every_seconds=0.0),
        reuse=False,
    )
    assert "train: no checkpoint after step 1: [Errno 28] No space left on device" in capsys.readouterr().err
    assert (tmp_path / "models" / "baseline" / "card.json").is_file()


def test_a_variant_that_diverges_is_marked_and_the_others_end_as_without_it(
    train_files: Train, tmp_path: Path, section: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    two = {"calm": {**section["fixed-1"], "lr": 1e-3}, "wild": {**section["fixed-1"], "lr": 1e30}}
    with_wild = train_files(VARIANTS.validate_python(two))
    err = capsys.readouterr().err
    assert "train: wild diverged at step 5: its loss or weights are not finite. It is not trained further" in err
    card = load_sae(tmp_path / "models" / "wild")[1]  # its weights are finite: what was not is 0
    assert card.final == {"diverged_at_step": 5}
    assert card.num_training_rows == 6 * 64
    assert [line["step"] for line in read_log(tmp_path / "models" / "wild")] == [0]
    assert "diverged_at_step" not in load_sae(tmp_path / "models" / "calm")[1].final

    # The same group with a second variant that does not diverge: products of the same shapes.
    two["wild"] = {**section["fixed-1"], "lr": 1e-4}
    without = train_files(VARIANTS.validate_python(two))
    assert all(with_wild[path] == without[path] for path in with_wild if path.startswith("calm/"))


def test_a_diverged_variant_is_known_again_and_not_trained_again(
    train_files: Train, section: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = VARIANTS.validate_python({"calm": section["baseline"], "wild": {**section["baseline"], "lr": 1e30}})
    before = train_files(two)
    monkeypatch.setattr("train.task.train_to_end", None)
    assert train_files(two, reuse=True) == before


def test_nothing_is_put_in_place_where_all_variants_diverged(
    train_files: Train, tmp_path: Path, section: dict[str, Any]
) -> None:
    wild = VARIANTS.validate_python({"wild": {**section["baseline"], "lr": 1e30}})
    with pytest.raises(ValueError, match=r"all diverged: wild at step \d+\. Lower lr, l1 or lambda"):
        train_files(wild)
    assert not (tmp_path / "models").exists()


def test_a_damaged_cache_stops_with_the_shards_name_and_continues_once_it_is_whole(
    cache_folder: Path, tmp_path: Path, five: dict[str, VariantConfig], settings: dict[str, Any],
    capsys: pytest.CaptureFixture[str], train_files: Train, files_of: Callable[[Path], dict[str, bytes]],
) -> None:  # fmt: skip
    cache = tmp_path / "cache"
    shutil.copytree(cache_folder, cache)
    shard = cache / HOOK / "c" / "1" / "0"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])

    def attempt() -> None:
        run(
            TrainConfig.model_validate(settings), five, cache=cache, output=tmp_path / "there",
            scratch=tmp_path / "scratch-there", resources=TrainingResources(device="cpu", num_threads=1), reuse=False,
        )  # fmt: skip

    with pytest.raises(DamagedFile, match=rf"chunk \d+ of {re.escape(str(shard))}"):
        attempt()
    shard.write_bytes(whole)
    capsys.readouterr()
    attempt()
    assert re.search(r"train: continues after step \d+ of a stopped training", capsys.readouterr().err)
    assert files_of(tmp_path / "there") == train_files(five)


def test_groups_that_do_not_fit_together_are_trained_in_several_passes(
    train_files: Train, five: dict[str, VariantConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    settings: dict[str, Any],
) -> None:  # fmt: skip
    train_files(five)
    together = {name: read_log(tmp_path / "models" / name) for name in five}
    resolved = resolve_variants(TrainConfig.model_validate(settings), five, cache_digest="any")
    two = group_bytes(
        [variant.settings for variant in resolved[:2]], d_model=16, batch_rows=64, device=torch.device("cpu")
    )
    capsys.readouterr()
    train_files(five, budget_bytes=two)
    assert "5 variants in 3 groups of 2, 2, 1; 3 passes over the data" in capsys.readouterr().err
    for name in five:
        apart = read_log(tmp_path / "models" / name)
        assert [line["rows"] for line in apart] == [line["rows"] for line in together[name]]
        assert apart[-1]["mse"] == pytest.approx(
            together[name][-1]["mse"], rel=1e-3
        )  # the same batches in the same order


def test_groups_of_two_shapes_are_stepped_through_each_batch_of_one_pass(
    train_files: Train, section: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = {**section["baseline"], "d_sae": 40}
    train_files(VARIANTS.validate_python({"narrow": section["baseline"], "wide": wide}))
    assert "2 variants in 2 groups of 1, 1; 1 pass over the data" in capsys.readouterr().err
    both = {name: read_log(tmp_path / "models" / name) for name in ("narrow", "wide")}
    assert load_sae(tmp_path / "models" / "wide")[1].d_sae == 40
    train_files(VARIANTS.validate_python({"wide": wide}))
    assert read_log(tmp_path / "models" / "wide") == both["wide"]  # a group of the same shape: the same bits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"hook": "blocks.7.hook_resid_post"},
            r"one of the cached hooks blocks.1.hook_resid_post, got blocks.7.hook_resid_post",
        ),
        (
            {"batch_rows": 4096},
            r"train.batch_rows of at most the 1024 rows of the cache that are trained on, got 4096. Lower it",
        ),
    ],
)
def test_settings_that_do_not_fit_the_cache_are_refused_before_anything_is_written(
    train_files: Train, five: dict[str, VariantConfig], change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train_files(five, **change)
    assert not (tmp_path / "models").exists()
    assert not (tmp_path / "scratch").exists()


def test_training_on_the_first_rows_is_another_training_and_on_all_of_them_the_same(
    train_files: Train, five: dict[str, VariantConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = {"baseline": five["baseline"]}
    whole = train_files(variants)
    assert train_files(variants, num_rows=None) == whole  # null is no part of what identifies a variant
    all_rows = load_sae(tmp_path / "models" / "baseline")[1]
    assert all_rows.num_steps == NUM_STEPS
    train_files(variants, num_rows=600)  # 9 chunks of 64 rows, twice
    card = load_sae(tmp_path / "models" / "baseline")[1]
    assert card.num_steps == 18
    assert card.key != all_rows.key
    assert card.scale == all_rows.scale  # of all rows, so that the two can be compared
    assert "train: 18 steps of 64 rows are few for an SAE" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"expected num_rows between a chunk \(64\) and all 1024 rows .*got 2000"):
        train_files(variants, num_rows=2000)


def test_bad_names_and_no_variants_are_refused_by_the_stage_too(
    train_files: Train, five: dict[str, VariantConfig]
) -> None:
    with pytest.raises(ValueError, match=r"matches \[A-Za-z\]\[A-Za-z0-9_-\]\* .*got '../x'"):
        train_files({"../x": five["baseline"]})
    with pytest.raises(ValueError, match="expected at least one variant"):
        train_files({})


def test_a_cache_that_is_not_there_is_said_so(
    five: dict[str, VariantConfig], tmp_path: Path, settings: dict[str, Any]
) -> None:
    with pytest.raises(IncompleteCache, match="found no such folder"):
        run(
            TrainConfig.model_validate(settings), five, cache=tmp_path / "nothing", output=tmp_path / "models",
            scratch=tmp_path / "scratch", resources=TrainingResources(device="cpu", num_threads=1), reuse=False,
        )  # fmt: skip


def test_two_trainings_cannot_share_a_scratch_folder(
    train_files: Train, five: dict[str, VariantConfig], tmp_path: Path
) -> None:
    from store.lease import exclusive_lock

    with exclusive_lock(tmp_path / "scratch"), pytest.raises(Busy, match="is being written by process"):
        train_files(five)


def test_other_activations_are_another_training(
    train_files: Train,
    five: dict[str, VariantConfig],
    tmp_path: Path,
    settings: dict[str, Any],
    files_of: Callable[[Path], dict[str, bytes]],
    cache_at: Callable[..., Path],
) -> None:
    before = train_files(five)
    other = cache_at(tmp_path / "other", seed=1)
    run(
        TrainConfig.model_validate(settings), five, cache=other, output=tmp_path / "models",
        scratch=tmp_path / "scratch", resources=TrainingResources(device="cpu", num_threads=1), reuse=True,
    )  # fmt: skip
    after = files_of(tmp_path / "models")
    assert all(before[path] != after[path] for path in before if path.endswith("card.json"))


def test_a_checkpoint_of_another_group_is_refused_by_its_key(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"expected the checkpoint of training 000000000000 in .* found that of"):
        load_checkpoint(checkpoint, key="0" * 64)
