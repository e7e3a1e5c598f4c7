"""Harvests damaged shards of a cache again: what `store repair` falls back on when no copy is left."""

from collections.abc import Callable
from pathlib import Path

from harvest.config import HarvestConfig
from harvest.run import cache_spec
from harvest.shards import MAX_PENDING_BYTES, harvest_shards, missing_shards, packed_windows
from harvest.text import open_text
from language_model.config import LanguageModelConfig
from language_model.load import identify, resolve
from store.cache.manifest import Manifest
from store.cache.spec import check_spec
from store.care.dvc_versions import files_in
from store.lease import Lease
from store.write.writer import CacheWriter


def remaker(
    config: HarvestConfig, *, model: LanguageModelConfig, damaged: Path, device: str
) -> Callable[[Manifest, Path, Lease], None]:
    """A function that makes the cache of a manifest in a folder, from what is whole in `damaged` and from the text.

    It raises MismatchedCache when the settings are not those that the cache was harvested with; the codec may differ,
    and how many rows were asked for.
    """

    def remake(manifest: Manifest, target: Path, lease: Lease) -> None:
        folder = resolve(model.name, model.revision)
        identity = identify(folder, model.name, model.revision)
        source = open_text(config.text)
        wanted = config.model_copy(
            update={
                "codec": manifest.spec.codec,
                "num_rows": manifest.num_rows,
                "num_held_out_sequences": manifest.num_held_out_sequences,
            }
        )
        spec = cache_spec(wanted, identity=identity, lineage=source.lineage, compute_dtype=model.compute_dtype)
        check_spec(manifest.spec, spec, where=str(damaged))
        with CacheWriter(
            target,
            spec,
            num_sequences=manifest.num_sequences,
            num_held_out_sequences=manifest.num_held_out_sequences,
            max_pending_bytes=MAX_PENDING_BYTES,
            lease=lease,
        ) as writer:
            writer.adopt(files_in(damaged))
            if missing := missing_shards(writer):
                # Named as in harvest: those that a repair of an earlier cache left here are of another text or budget.
                kept = f"windows-{spec.digest[:16]}-{manifest.num_sequences}-{manifest.num_held_out_sequences}"
                windows = packed_windows(target.with_name(kept), source, wanted, folder=folder, identity=identity)
                harvest_shards(writer, missing, windows, spec=spec, folder=folder, device=device)
            writer.finish()

    return remake
