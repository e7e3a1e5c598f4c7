"""What storing costs: a harvest against the bare truncated forward pass, and against SAELens's cache, in one run.

    python benchmarks/harvest_cost.py [--model FOLDER] [--hook blocks.2.hook_resid_post] [--sequences 512] [--json]

`forward` runs the model up to the hook over the same windows in the same batches and keeps nothing. `harvest` is what
`pipeline.py harvest` does with them: rows rounded and summed, encoded, checksummed, written, synced, committed; in a
folder of the working directory and in --folder (a tmpfs by default). `SAELens` is its CacheActivationsRunner on the
same model (behind TransformerLens's bridge), tokens and batches, in float32, because its cache refuses bfloat16. All
take turns; the best of the rounds counts. Loading and packing are no part of any of them. On a busy machine compare the
CPU seconds. (The file is not called harvest.py, which would hide the package of that name.)
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import finish, machine, parser, table
from numpy.typing import NDArray

from harvest.activations import CutModel, hidden_states, load_cut_model
from harvest.shards import MAX_PENDING_BYTES, harvest_shards, missing_shards
from harvest.text import open_text
from harvest.text_config import StandardLibraryText
from harvest.tokens import pack
from language_model.load import identify, load_bridge, resolve
from language_model.tokenizer import load_tokenizer
from store.cache.spec import CacheSpec
from store.identity import ModelIdentity
from store.write.writer import CacheWriter

CONTEXT = 128
BATCH = 32
SHARD = 128


def main() -> None:
    """Parses the command line, measures, prints."""
    arguments = parser(__doc__)
    arguments.set_defaults(rounds=3)
    arguments.add_argument("--model", default="embedded", help="folder or name of the language model (%(default)s)")
    arguments.add_argument("--hook", default="blocks.2.hook_resid_post", help="where (%(default)s)")
    arguments.add_argument("--sequences", type=int, default=512, help="windows of 128 tokens (%(default)s)")
    arguments.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="second place (%(default)s)")
    arguments.add_argument("--threads", type=int, help="of torch's products (torch's choice)")
    arguments.add_argument("--without-saelens", action="store_true", help="leave the peer out")
    options = arguments.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.sequences % SHARD:
        raise SystemExit(f"expected a multiple of {SHARD} sequences, whole shards for both, got {options.sequences}")
    folder = resolve(options.model, None)
    identity = identify(folder, options.model, None)
    windows = windows_of(folder, identity, options.sequences)
    model = load_cut_model(folder, (options.hook,), dtype=torch.float32, device="cpu")
    num_tokens = windows.size
    with tempfile.TemporaryDirectory(dir=Path()) as disk, tempfile.TemporaryDirectory(dir=options.folder) as tmpfs:
        measured = {
            "forward": lambda: forward(model, windows),
            "harvest, disk": lambda: harvest(model, identity, options.hook, windows, Path(disk) / "cache"),
            "harvest, tmpfs": lambda: harvest(model, identity, options.hook, windows, Path(tmpfs) / "cache"),
        }
        if not options.without_saelens:
            bridge = load_bridge(folder, dtype=torch.float32, device="cpu")
            measured["SAELens, disk"] = lambda: saelens(bridge, options.hook, windows, Path(disk) / "peer")
            measured["SAELens, tmpfs"] = lambda: saelens(bridge, options.hook, windows, Path(tmpfs) / "peer")
        for function in measured.values():
            function()  # compiles, and fills caches
        seconds, cpu_seconds = in_turns(options.rounds, measured)
        stored = {
            name: nbytes(place / ("peer" if name.startswith("SAELens") else "cache"), options.hook)
            for place in (Path(disk), Path(tmpfs))
            for name in measured
            if name.endswith("disk" if place == Path(disk) else "tmpfs")
        }
    figures: dict[str, Any] = {
        "model": identity.name,
        "d_model": identity.d_model,
        "hook": options.hook,
        "tokens": num_tokens,
        "measured": {
            name: {
                "tokens_per_s": num_tokens / took,
                "over_forward": took / seconds["forward"] - 1,
                "cpu_over_forward": cpu_seconds[name] / cpu_seconds["forward"] - 1,
                "bytes_per_token": stored[name] / num_tokens if name in stored else None,
            }
            for name, took in seconds.items()
        },
        "machine": machine("torch", "transformers", "sae-lens", "datasets"),
    }
    threads = torch.get_num_threads()
    print(f"{identity.name}, {options.hook}, {num_tokens:,} tokens, float32, {threads} CPU threads")
    table(
        ("", "tokens/s", "time over the forward pass", "CPU seconds over it", "bytes per token"),
        [
            (
                name,
                float(found["tokens_per_s"]),
                "" if name == "forward" else f"{found['over_forward']:+.1%}",
                "" if name == "forward" else f"{found['cpu_over_forward']:+.1%}",
                "" if found["bytes_per_token"] is None else f"{found['bytes_per_token']:,.0f}",
            )
            for name, found in figures["measured"].items()
        ],
    )
    finish(figures, options)


def in_turns(rounds: int, measured: dict[str, Callable[[], None]]) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of wall time and of all cores, the best of the rounds of each."""
    wall, cpu = dict.fromkeys(measured, float("inf")), dict.fromkeys(measured, float("inf"))
    for _ in range(rounds):
        for name, function in measured.items():
            began, cpu_began = time.perf_counter(), time.process_time()
            function()
            wall[name] = min(wall[name], time.perf_counter() - began)
            cpu[name] = min(cpu[name], time.process_time() - cpu_began)
    return wall, cpu


def windows_of(folder: Path, identity: ModelIdentity, count: int) -> NDArray[np.uint32]:
    """Windows (count, 128) of the standard library."""
    packed = pack(
        open_text(StandardLibraryText(kind="standard-library")),
        load_tokenizer(folder),
        bos_token_id=identity.bos_token_id,
        vocab_size=identity.vocab_size,
        context_length=CONTEXT,
        num_sequences=count,
        num_held_out_sequences=1,
        held_out_fraction=0.05,
    )
    return packed.training


def forward(model: CutModel, windows: NDArray[np.uint32]) -> None:
    """The bare truncated forward pass."""
    for start in range(0, len(windows), BATCH):
        hidden_states(model, torch.from_numpy(windows[start : start + BATCH].astype(np.int64)))


def harvest(model: CutModel, identity: ModelIdentity, hook: str, windows: NDArray[np.uint32], folder: Path) -> None:
    """A whole cache of the windows; the first one is the held-out one too."""
    shutil.rmtree(folder, ignore_errors=True)
    spec = CacheSpec.model_validate(
        {
            "model": identity, "hooks": (hook,), "text": {"kind": "benchmark"}, "context_length": CONTEXT,
            "excluded_positions": ("bos",), "packing": "benchmark", "held_out_fraction": 0.05,
            "compute_dtype": "float32", "forward_batch_sequences": BATCH, "sequences_per_chunk": 16,
            "chunks_per_shard": SHARD // 16, "codec": "bf16_planes_v1", "harvest_version": 0,
        }
    )  # fmt: skip
    with CacheWriter(
        folder, spec, num_sequences=len(windows), num_held_out_sequences=1, max_pending_bytes=MAX_PENDING_BYTES
    ) as writer:
        per_shard = spec.sequences_per_shard
        harvest_shards(
            writer,
            missing_shards(writer),
            model,
            windows=lambda split, shard: (
                windows[shard * per_shard : (shard + 1) * per_shard] if split == "training" else windows[:1]
            ),
            device="cpu",
        )
        writer.finish()


def saelens(bridge: Any, hook: str, windows: NDArray[np.uint32], folder: Path) -> None:  # noqa: ANN401
    """SAELens's own cache of the same windows. Only its loading of the model is replaced."""
    import datasets
    from sae_lens import cache_activations_runner
    from sae_lens.config import CacheActivationsRunnerConfig

    datasets.disable_progress_bars()
    shutil.rmtree(folder, ignore_errors=True)
    cache_activations_runner.load_model = lambda **_: bridge
    config = CacheActivationsRunnerConfig(
        dataset_path="benchmark",
        model_name="benchmark",
        model_batch_size=BATCH,
        hook_name=hook,
        d_in=bridge.cfg.d_model,
        training_tokens=windows.size,
        context_size=CONTEXT,
        new_cached_activations_path=str(folder),
        shuffle=False,
        dtype="float32",
        device="cpu",
        buffer_size_gb=4.01 * SHARD * CONTEXT * bridge.cfg.d_model / 1e9,  # as many sequences as our shards have
        prepend_bos=True,
        streaming=False,
    )
    tokens = datasets.Dataset.from_dict({"tokens": windows.astype(np.int64).tolist()})
    cache_activations_runner.CacheActivationsRunner(config, override_dataset=tokens).run()


def nbytes(folder: Path, hook: str) -> int:
    """What the rows and their tokens take on disk; of ours without the held-out window, of theirs all there is."""
    ours = folder / hook
    files = [ours, folder / "tokens"] if ours.is_dir() else [folder]
    return sum(path.stat().st_size for place in files for path in place.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
