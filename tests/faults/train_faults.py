"""What a training survives, and what it refuses, on a small cache of real form: three kinds of fault, each for real.

    python tests/faults/train_faults.py [--kills 20 --seed 0] [--json]

kill        SIGKILL at random moments of a run until it is through; its artefacts must equal, byte for byte, those of a
            run that nobody disturbed. Before some continuations the newest checkpoint is damaged as well.
cache       one byte of a shard changes under a running training; it must stop and name the shard, and continue to the
            same bytes once the shard is back.
disk full   no file may grow past a limit (RLIMIT_FSIZE), so that checkpoints cannot be written from some moment on; the
            run must end with the same bytes, and when it is killed meanwhile, continue from the last good checkpoint.

Exit code 1 if any of it fails. The moments are drawn from `--seed`; how far a run has come by then is the machine's
affair.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from store.cache.moments import ShardSums
from store.cache.spec import CacheSpec
from store.cache.split import SPLITS
from store.identity import ModelIdentity
from store.write.writer import CacheWriter

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
from bench import machine  # noqa: E402

HOOK = "blocks.1.hook_resid_post"
D_MODEL, NUM_SEQUENCES, CONTEXT = 64, 1024, 33
NUM_EPOCHS = 4
NUM_STEPS = NUM_EPOCHS * NUM_SEQUENCES * (CONTEXT - 1) // 256
VARIANTS: dict[str, Any] = {
    "baseline": {"lambda": {"kind": "fixed", "value": 0.0}},
    "fixed-1": {"lambda": {"kind": "fixed", "value": 1.0}},
    "adaptive": {"lambda": {"kind": "learned", "start": 1.0}},
    "dual": {"lambda": {"kind": "dual", "start": 1.0, "target": 0.02, "rate": 0.01}},
    "hypergradient": {"lambda": {"kind": "hypergradient", "start": 1.0}},
    "control": {"lambda": {"kind": "matched", "of": "hypergradient", "take": "mean"}},
    "topk": {"lambda": {"kind": "linear", "start": 0.1, "end": 10.0}, "architecture": {"kind": "topk", "k": 8}},
    "wild": {"lambda": {"kind": "fixed", "value": 0.0}, "lr": 1.0e30},
}
"""Two shapes, a variant that diverges, and a control, which is trained in a second round."""
PROGRAM = """
import json, resource, sys
from pathlib import Path
from train.config import VARIANTS, TrainConfig
from train.run import run
from train.task import TrainingResources
folder, settings, variants, every, limit = json.loads(sys.argv[1])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
run(TrainConfig.model_validate(settings), VARIANTS.validate_python(variants), cache=Path(folder) / "cache",
    output=Path(folder) / "models", scratch=Path(folder) / "scratch", reuse=False,
    resources=TrainingResources(device="cpu", num_threads=1, checkpoint_every_seconds=every))
"""


def main() -> int:
    """Parses the command line, injects the faults, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs in all (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="train-faults-") as name:
        trial = Trial(Path(name), random.Random(options.seed))
        results = [trial.kills(options.kills), trial.damaged_cache(), trial.full_disk()]
    about = machine("torch")
    print("  ".join(f"{key} {value}" for key, value in about.items()))
    print(f"undisturbed run: {trial.seconds:.1f} s, {len(VARIANTS)} variants in two shapes, one of them diverging")
    for result in results:
        print(f"{'passed' if result['passed'] else 'FAILED':<8}{result['fault']:<12}{result['what']}")
    passed = all(result["passed"] for result in results)
    if options.json:
        report = {
            "machine": about,
            "seed": options.seed,
            "seconds": trial.seconds,
            "results": results,
            "passed": passed,
        }
        print(json.dumps(report, sort_keys=True))
    return 0 if passed else 1


class Trial:
    """A cache, the artefacts of a run that nobody disturbed, and the runs that somebody did."""

    def __init__(self, root: Path, dice: random.Random) -> None:
        self.root = root
        self.dice = dice
        for package in (
            "compute",
            "store",
            "train",
        ):  # a copy, so that nobody's edits get between two runs that are compared
            shutil.copytree(ROOT / package, root / "code" / package)
        write_cache(root / "cache")
        folder = self.folder("undisturbed")
        process = self.start(folder)
        wait_for(lambda: announcements(folder) > 0, process)
        begin = time.monotonic()
        if process.wait() != 0:
            raise SystemExit(f"the undisturbed run failed:\n{stderr_of(folder)}")
        self.seconds = time.monotonic() - begin
        """Of work, without the start of Python."""
        self.expected = files_of(folder / "models")

    def folder(self, name: str) -> Path:
        """A new folder with a copy of the cache."""
        folder = self.root / name
        shutil.copytree(self.root / "cache", folder / "cache")
        return folder

    def start(self, folder: Path, *, every: float = 0.2, limit: int = 0) -> "subprocess.Popen[bytes]":
        """The training in a process of its own, its stderr appended to folder/stderr."""
        arguments = json.dumps([str(folder), settings(), VARIANTS, every, limit])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(self.root / "code")}
        with (folder / "stderr").open("ab") as stderr:
            return subprocess.Popen(
                [sys.executable, "-c", PROGRAM, arguments], stderr=stderr, env=environment, cwd=self.root / "code"
            )

    def kills(self, count: int) -> dict[str, Any]:
        """Runs again and again, each killed at a random moment of its work, until `count` kills; then to the end."""
        killed, runs, damaged, identical, died_with = 0, 0, 0, True, []
        while killed < count:
            folder = self.folder(f"kills-{runs}")
            runs += 1
            while True:
                begun = announcements(folder)
                process = self.start(folder)
                moment = self.dice.uniform(0.0, 0.5 * self.seconds)
                if killed < count and kill_at(process, folder, begun=begun, moment=moment):
                    killed += 1
                    died_with.append(steps_done(folder))
                    if self.dice.random() < 0.2:
                        damaged += damage_newest(folder)
                    continue
                if process.wait() != 0:
                    return failure("kill", f"a continued run failed: {stderr_of(folder)[-500:]}")
                break
            identical &= files_of(folder / "models") == self.expected
            clean = not list((folder / "scratch").glob("t*"))
            shutil.rmtree(folder)
            if not (identical and clean):
                return failure("kill", f"after {killed} kills the artefacts of run {runs} differ, or scratch is left")
        steps = [step for step in died_with if step is not None]
        return {
            "fault": "kill", "passed": True, "kills": killed, "runs": runs, "damaged_checkpoints": damaged,
            "newest_checkpoint_at_kill": died_with,
            "what": f"{killed} kills over {runs} runs ({len(steps)} after a checkpoint, {damaged} newest checkpoints "
            f"damaged besides): {len(self.expected)} files, byte-identical each time",
        }  # fmt: skip

    def damaged_cache(self) -> dict[str, Any]:
        """One byte of each shard but the first changes while a training runs."""
        folder = self.folder("cache-damaged")
        process = self.start(folder)
        wait_for(lambda: steps_done(folder) is not None, process)
        shards = sorted(path for path in (folder / "cache" / HOOK / "c").rglob("*") if path.is_file())[1:]
        whole = {shard: shard.read_bytes() for shard in shards}
        for shard in shards:
            with shard.open("r+b") as file:  # in place, as a bad disk does: the reader has the file mapped
                file.seek(len(whole[shard]) // 2)
                byte = file.read(1)[0]
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte ^ 1]))
        code = process.wait()
        said = stderr_of(folder)
        named = [str(shard) for shard in shards if str(shard) in said]
        if code == 0 or not named or "DamagedFile" not in said:
            return failure("cache", f"exit code {code}, and no shard was named: {said[-500:]}")
        for shard, data in whole.items():
            shard.write_bytes(data)
        again = self.start(folder).wait()
        same = again == 0 and files_of(folder / "models") == self.expected
        return {
            "fault": "cache", "passed": same, "named": Path(named[0]).relative_to(folder).as_posix(),
            "what": f"stopped and named {Path(named[0]).relative_to(folder)}; with the shard back it continued to the "
            + ("same bytes" if same else "OTHER bytes, or not at all"),
        }  # fmt: skip

    def full_disk(self) -> dict[str, Any]:
        """Checkpoints that cannot be written: from the beginning, and after some could."""
        folder = self.folder("disk-full")
        largest = max(len(data) for data in self.expected.values())
        limit = 4 * largest  # artefacts fit, checkpoints of all variants with their moments do not
        code = self.start(folder, limit=limit).wait()
        said = stderr_of(folder)
        failed = said.count("train: no checkpoint after step")
        if code != 0 or failed == 0 or files_of(folder / "models") != self.expected:
            return failure("disk full", f"exit code {code}, {failed} failed checkpoints: {said[-500:]}")

        # Some good checkpoints, then none can be written any more, then the run is killed.
        folder = self.folder("disk-full-later")
        process = self.start(folder)
        wait_for(lambda: (steps_done(folder) or 0) > NUM_STEPS // 4, process)
        process.kill()
        process.wait()
        good = steps_done(folder)
        process = self.start(folder, every=0.0, limit=limit)
        wait_for(lambda: "train: no checkpoint after step" in stderr_of(folder), process)
        process.kill()
        process.wait()
        if steps_done(folder) != good:
            return failure("disk full", f"the good checkpoint of step {good} is gone")
        (folder / "stderr").unlink()
        code = self.start(folder).wait()
        said = stderr_of(folder)
        same = code == 0 and files_of(folder / "models") == self.expected
        same &= f"train: continues after step {good} of a stopped training" in said
        return {
            "fault": "disk full", "passed": same, "failed_checkpoints": failed, "continued_after_step": good,
            "what": f"{failed} checkpoints could not be written and the run ended with the same bytes; killed while it "
            f"could write none, it continued after step {good}" + (" to the same bytes" if same else ": OTHER bytes"),
        }  # fmt: skip


def failure(fault: str, what: str) -> dict[str, Any]:
    """A result that fails."""
    return {"fault": fault, "passed": False, "what": what}


def settings() -> dict[str, Any]:
    """The `train` section of all runs."""
    return {
        "hook": HOOK, "architecture": {"kind": "relu"}, "d_sae": 256, "batch_rows": 256, "num_epochs": NUM_EPOCHS,
        "pool_bytes": 2**20, "lr": 1e-3, "lr_warm_up_fraction": 0.05, "lr_decay_fraction": 0.2, "adam_beta1": 0.9,
        "adam_beta2": 0.999, "adam_eps": 1e-8, "gradient_clip": None, "l1": 0.5, "sparsity_warm_up_fraction": 0.1,
        "decoder_norm": "unit", "dead_latents": {"kind": "none"}, "seed": 0, "penalty": {"kind": "gram"},
        "penalty_scale": "sum", "lambda_regularizer": 0.1, "lambda_lr": None, "dead_after_rows": 20000,
        "log_every_steps": 10,
    }  # fmt: skip


def write_cache(folder: Path) -> None:
    """32,768 rows of 64 channels in eight shards: sparse positive combinations of 96 directions."""
    spec = CacheSpec(
        model=ModelIdentity(
            name="none", revision=None, weights_sha256="w", tokenizer_sha256="t", d_model=D_MODEL, num_layers=2,
            vocab_size=50, bos_token_id=0,
        ),
        hooks=(HOOK,), text={"kind": "random"}, context_length=CONTEXT, excluded_positions=("bos",),
        packing="none: random rows", held_out_fraction=0.1, compute_dtype="float32", forward_batch_sequences=16,
        sequences_per_chunk=16, chunks_per_shard=8, codec="bf16_planes_v1", harvest_version=1,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(96, D_MODEL, generator=generator)
    writer = CacheWriter(folder, spec, num_sequences=NUM_SEQUENCES, num_held_out_sequences=2)
    shards = [(split, shard) for split in SPLITS for shard in writer.missing_shards(split)]
    for split, shard in shards:
        num_sequences = writer.shard_sequences(shard, split)
        num_rows = num_sequences * (CONTEXT - 1)
        present = torch.rand(num_rows, 96, generator=generator) < 0.1
        rows = ((present * torch.rand(num_rows, 96, generator=generator)) @ directions + 0.5).to(torch.bfloat16)
        exact = rows.to(torch.float64)
        tokens = np.zeros((num_sequences, CONTEXT), dtype=np.uint32)
        sums = ShardSums(num_rows=num_rows, sum=exact.sum(0).tolist(), sum_of_squares=exact.square().sum(0).tolist())
        writer.submit_shard(shard, split=split, tokens=tokens, rows={HOOK: rows}, sums={HOOK: sums}).result()
    writer.finish()
    writer.close()


def announcements(folder: Path) -> int:
    """TrainingResources often a training in this folder has begun its work."""
    return stderr_of(folder).count(" over the data")


def kill_at(process: "subprocess.Popen[bytes]", folder: Path, *, begun: int, moment: float) -> bool:
    """SIGKILL so many seconds after the process has begun its work; False if it had ended by then."""
    if not wait_for(lambda: announcements(folder) > begun, process):
        return False
    time.sleep(moment)
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[bytes]") -> bool:
    """Waits until it holds; False if the process ended first."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.01)
    return False


def checkpoints(folder: Path) -> Sequence[Path]:
    """Newest last."""
    return sorted((folder / "scratch").glob("tasks/*/checkpoint-*.safetensors"))


def steps_done(folder: Path) -> int | None:
    """Of the newest checkpoint."""
    found = checkpoints(folder)
    return int(found[-1].stem.removeprefix("checkpoint-")) if found else None


def damage_newest(folder: Path) -> int:
    """Cuts the newest checkpoint in half; how many were damaged."""
    found = checkpoints(folder)
    if not found:
        return 0
    os.truncate(found[-1], found[-1].stat().st_size // 2)
    return 1


def stderr_of(folder: Path) -> str:
    """All that the runs in this folder have said."""
    path = folder / "stderr"
    return path.read_text(errors="replace") if path.exists() else ""


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file's bytes by path."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


if __name__ == "__main__":
    sys.exit(main())
