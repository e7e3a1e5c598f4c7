"""One harvest: shards that exist already are reused, the others are computed, and the cache is put in place.

A process that is killed loses the shard it was computing; the next run continues behind the committed ones.
"""

import contextlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from harvest.config import HarvestConfig
from harvest.estimate import check_free_space
from harvest.inputs import open_inputs
from harvest.shards import MAX_PENDING_BYTES, harvest_shards, missing_shards, window_source
from language_model.config import LanguageModelConfig
from store.cache.manifest import Manifest, parse_manifest
from store.cache.paths import MANIFEST_FILE
from store.cache.spec import CacheSpec, spec_difference
from store.cache.split import SPLITS
from store.cache.text_account import TextAccount
from store.care.dvc_versions import earlier_outputs, files_in
from store.errors import StoreError
from store.identity import how_identified
from store.lease import exclusive_lock
from store.replace import assembly_folder, check_target, replace_folder
from store.write.writer import CacheWriter


def run(
    config: HarvestConfig, *, model: LanguageModelConfig, output: Path, scratch: Path, device: str, reuse: bool
) -> Manifest:
    """Makes `output` the activation cache of `config`; with `reuse`, shards of earlier outputs are reused.

    Works in a folder of its own below `scratch`, or on the file system of `output` where that is another one; a killed
    run leaves it for the next one. `output` stays as it is until the cache is complete. Raises ValueError (with what to
    do) for a model, text or setting that cannot be used, and `Busy` while another harvest runs.
    """
    inputs = open_inputs(config, model)
    spec = inputs.spec
    place = assembly_folder(output, scratch)  # a cache is too large to be copied at the end
    with exclusive_lock(place) as lease:
        check_target(output, place)
        same_spec = f"activations-{spec.digest[:16]}"  # scratch folders of this spec, whatever the number of rows
        own = place / f"{same_spec}-{config.num_sequences}-{config.num_held_out_sequences}"
        with CacheWriter(
            own / "cache",
            spec,
            num_sequences=config.num_sequences,
            num_held_out_sequences=config.num_held_out_sequences,
            max_pending_bytes=MAX_PENDING_BYTES,
            lease=lease,
        ) as writer:
            account = None
            if reuse:
                account = _reuse_shards(writer, output, interrupted=sorted(place.glob(f"{same_spec}-*/cache")))
            missing = missing_shards(writer)
            num_shards = sum(map(writer.num_shards, SPLITS))
            if len(missing) < num_shards:
                num_reused = num_shards - len(missing)
                print(f"harvest: {num_reused} of {num_shards} shards are unchanged and reused", file=sys.stderr)
            num_missing = sum(writer.shard_sequences(shard, split) for split, shard in missing)
            check_free_space(
                own,
                num_rows=num_missing * spec.rows_per_sequence,
                num_hooks=len(spec.hooks),
                d_model=spec.model.d_model,
            )
            with window_source(own / "windows", inputs, config) as windows:
                if missing:
                    harvest_shards(writer, missing, windows, inputs, device=device)
                if account is None:
                    account = windows.account()
            manifest = writer.finish(text_account=account)
        lease.check()
        replace_folder(own / "cache", output)
        for finished in place.glob(f"{same_spec}-*"):
            shutil.rmtree(finished)
        if place != scratch:
            shutil.rmtree(place, ignore_errors=True)  # while it is ours
    return manifest


def _reuse_shards(writer: CacheWriter, output: Path, *, interrupted: Sequence[Path]) -> TextAccount | None:
    """Reuses shards of runs that were interrupted, whatever their number of rows, and of earlier outputs.

    Returns the account of the text, if an earlier output of the same spec and size has it: then no text is read.
    """
    for folder in interrupted:
        writer.reuse_shards(files_in(folder))
    num_missing, earlier_specs, account = len(missing_shards(writer)), [], None
    for files in earlier_outputs(output.as_posix()):
        if not missing_shards(writer) and account is not None:
            break
        writer.reuse_shards(files)
        if MANIFEST_FILE in files:
            with contextlib.suppress(OSError, StoreError):  # damaged, or of another version: it says nothing
                earlier = parse_manifest(files[MANIFEST_FILE].read_bytes(), where=MANIFEST_FILE)
                earlier_specs.append(earlier.spec)
                sizes = (earlier.num_sequences, earlier.num_held_out_sequences)
                if (earlier.spec.digest, *sizes) == (
                    writer.spec.digest, writer.num_sequences, writer.num_held_out_sequences,
                ):  # fmt: skip
                    account = account or earlier.text_account
    if earlier_specs and len(missing_shards(writer)) == num_missing:
        _tell_difference(earlier_specs[0], writer.spec)
    return account


def _tell_difference(earlier: CacheSpec, spec: CacheSpec) -> None:
    """Says why nothing of the newest earlier cache could be reused."""
    difference = spec_difference(spec, earlier)
    if difference is not None:
        name, now, before = difference
        print(
            f"harvest: nothing of the earlier cache can be reused: {name} was {str(before)[:100]}, and is "
            f"{str(now)[:100]}{how_identified(earlier.model)}",
            file=sys.stderr,
        )
