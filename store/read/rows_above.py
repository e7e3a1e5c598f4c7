"""How many rows of a part of a cache are above a limit of the norm, by the records of its shards."""

from store.cache.manifest import Manifest, ShardRecord
from store.cache.norm_limit import NormLimit
from store.cache.norms import lower_edge
from store.cache.paths import shard_record_path
from store.errors import StoreError
from store.files.protocol import Files, address
from store.record_file import parse_record_file


def most_rows_above(files: Files, manifest: Manifest, hook: str, limit: NormLimit, *, num_rows: int) -> int:
    """No more of the first `num_rows` training rows, in the order of the disk, are above the limit.

    Of whole shards they are counted exactly. Of a shard that is used in part it is known how many it has, and not
    where: all of them are taken to be in that part.
    """
    if num_rows == manifest.num_rows or not limit.num_rows_above:
        return limit.num_rows_above
    above = 0
    for shard in range(-(-num_rows // manifest.spec.rows_per_shard)):
        name = shard_record_path(shard, "training")
        where = address(files, name)
        norms = parse_record_file(ShardRecord, files.read(name), where=where).sums[hook].norms
        if norms is None:
            raise StoreError(f"expected the norms of rows in {where}, as the manifest has them. Harvest again")
        in_shard = sum(
            count
            for number, count in zip(norms.bins, norms.counts, strict=True)
            if lower_edge(number) >= limit.squared_norm  # which is an edge
        )
        above += min(in_shard, num_rows - shard * manifest.spec.rows_per_shard)
    return above
