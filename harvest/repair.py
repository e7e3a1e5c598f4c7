"""Harvests damaged shards of a cache again: what `store repair` does when no copy is left."""

from pathlib import Path

from harvest.config import HarvestConfig
from harvest.inputs import open_inputs
from harvest.shards import MAX_PENDING_BYTES, harvest_shards, load_cut, missing_shards, window_source
from harvest.synthetic import truth_files
from language_model.config import LanguageModelConfig
from store.cache.manifest import Manifest
from store.cache.spec import check_spec
from store.care.dvc_versions import files_in
from store.lease import Lease
from store.write.writer import CacheWriter


def harvest_again(
    manifest: Manifest,
    target: Path,
    lease: Lease,
    *,
    config: HarvestConfig,
    model: LanguageModelConfig | None,
    damaged: Path,
    device: str,
) -> None:
    """Makes the cache of `manifest` in the folder `target`: whole shards of `damaged` are reused, the rest computed.

    Raises MismatchedCache when the settings are not those that the cache was harvested with. Only the codec and the
    number of rows may differ: they are taken from the manifest.
    """
    wanted = config.model_copy(
        update={
            "codec": manifest.spec.codec,
            "num_rows": manifest.num_rows,
            "num_held_out_sequences": manifest.num_held_out_sequences,
        }
    )
    device = "cpu" if config.synthetic is not None else device
    inputs = open_inputs(wanted, model)
    check_spec(manifest.spec, inputs.spec, where=str(damaged))
    with CacheWriter(
        target,
        inputs.spec,
        num_sequences=manifest.num_sequences,
        num_held_out_sequences=manifest.num_held_out_sequences,
        max_pending_bytes=MAX_PENDING_BYTES,
        lease=lease,
    ) as writer:
        writer.reuse_shards(files_in(damaged))
        if missing := missing_shards(writer):
            # The name holds the spec and the sizes: an earlier repair may have left the windows of another cache here.
            sizes = f"{manifest.num_sequences}-{manifest.num_held_out_sequences}"
            saved = target.with_name(f"windows-{inputs.spec.digest[:16]}-{sizes}")
            with window_source(saved, inputs, wanted) as windows:
                model_of_it = load_cut(inputs.model_folder, inputs.spec, inputs.spec.hooks, device=device)
                harvest_shards(
                    writer, missing, model_of_it, windows=windows.shard, origin=windows.origin, device=device
                )
        truth = None
        if inputs.spec.is_synthetic:
            truth = truth_files(inputs.spec, num_held_out_sequences=manifest.num_held_out_sequences)
        writer.finish(text_account=manifest.text_account, truth=truth)
