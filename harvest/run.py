"""One harvest: shards that exist already are reused, the others are computed, and the cache is put in place.

A process that is killed or stopped loses the shard it was computing; the next run continues behind the committed ones.
"""

import dataclasses
import shutil
import socket
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from compute.progress import phase, say
from harvest.config import HarvestConfig
from harvest.dispatch import HarvestResources, Missing, compute_missing
from harvest.estimate import check_free_space
from harvest.inputs import open_inputs
from harvest.reuse import reuse_shards, tell_what_is_reused
from harvest.shards import MAX_PENDING_BYTES, missing_hooks, missing_rows, missing_shards, window_source
from harvest.synthetic import truth_files
from language_model.config import LanguageModelConfig
from store.cache.left_out import left_out_lines
from store.cache.manifest import Manifest
from store.cache.spec import CacheSpec
from store.cache.split import SPLITS
from store.harvest_log import HarvestLog, HarvestRun, read_harvest_log, write_harvest_log
from store.lease import exclusive_lock
from store.replace import assembly_folder, check_target, replace_folder
from store.write.known_digests import KnownDigests
from store.write.writer import CacheWriter

DIGESTS_FILE = "digests.json"
"""In scratch: digests of the files of earlier caches."""


def run(
    config: HarvestConfig,
    *,
    model: LanguageModelConfig | None,
    output: Path,
    scratch: Path,
    resources: HarvestResources,
    reuse: bool,
    estimate_only: bool = False,
) -> Manifest | None:
    """Makes `output` the activation cache of `config`; with `reuse`, shards of earlier outputs are reused.

    Works in a folder of its own below `scratch`, or on the file system of `output` where that is another one; a killed
    run leaves it for the next one. `output` stays as it is until the cache is complete. On SIGTERM, SIGINT or SIGHUP
    what is computed is committed and SystemExit raised. With `estimate_only` it is only said what the harvest would
    take, and None returned.

    Raises:
        ValueError: (with what to do) a model, text or setting that cannot be used, or a harvest that cannot fit.
        Busy: another harvest runs.
    """
    if config.synthetic is not None:
        resources = dataclasses.replace(resources, device="cpu")  # where samples are drawn
    with phase("harvest", "making the features" if config.synthetic else "finding the language model and the text"):
        inputs = open_inputs(config, model)
    spec = inputs.spec
    place = assembly_folder(output, scratch)  # a cache is too large to be copied at the end
    known = KnownDigests(scratch / DIGESTS_FILE)
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
            known=known,
        ) as writer:
            account = None
            if reuse:
                with phase("harvest", "looking for shards of earlier harvests"):
                    account = reuse_shards(
                        writer, output, interrupted=_interrupted(place, first=same_spec), windows=own / "windows"
                    )
            tell_what_is_reused(writer)
            shards = missing_shards(writer)
            has_earlier = bool(writer.taken) or len(shards) < sum(map(writer.num_shards, SPLITS))
            num_rows, hooks = missing_rows(writer, shards, per_hook=True), missing_hooks(writer, shards)
            check_free_space(own, num_rows=num_rows, d_model=spec.model.d_model)
            done = None
            with window_source(own / "windows", inputs, config) as windows:
                if shards:
                    missing = Missing(writer, shards, windows, inputs, place, lease)
                    done = compute_missing(missing, resources, estimate_only=estimate_only)
                elif estimate_only:
                    say("harvest", "nothing would be computed: every shard is there")
                if estimate_only:
                    return None
                if account is None:
                    account = windows.account()
            manifest = writer.finish(text_account=account, truth=_truth(spec, config) if spec.is_synthetic else None)
            for line in left_out_lines(manifest.left_out, account):
                say("harvest", line)
        lease.check()
        log = read_harvest_log(output)
        runs = log.runs if log is not None and has_earlier else ()
        if done is not None:
            num_sequences = sum(writer.shard_sequences(shard, split) for split, shard in shards)
            runs = (
                *runs,
                HarvestRun(
                    finished=datetime.now(UTC).isoformat(timespec="seconds"),
                    host=socket.gethostname(),
                    device=resources.device,
                    num_workers=done.num_workers,
                    seconds=done.seconds,
                    num_tokens=num_sequences * spec.context_length,
                    num_shards=len(shards),
                    hooks=hooks,
                    raw_bytes=2 * num_rows * spec.model.d_model,
                    torch=version("torch"),
                ),
            )
        replace_folder(own / "cache", output)
        write_harvest_log(output, HarvestLog(cache_digest=manifest.digest, runs=runs))
        for name, file in manifest.files.items():
            known.remember(output / name, file.sha256)
        known.save()
        for finished in place.glob(f"{same_spec}-*"):
            shutil.rmtree(finished)
        if place != scratch:
            shutil.rmtree(place, ignore_errors=True)  # while it is ours
    return manifest


def _truth(spec: CacheSpec, config: HarvestConfig) -> dict[str, bytes]:
    """The files that say what the known features are, by hook."""
    with phase("harvest", "measuring how often each feature fires"):
        return truth_files(spec, num_held_out_sequences=config.num_held_out_sequences)


def _interrupted(place: Path, *, first: str) -> list[Path]:
    """Caches that interrupted runs left, those of the same spec first."""
    return sorted(place.glob("activations-*/cache"), key=lambda path: (not path.parent.name.startswith(first), path))
