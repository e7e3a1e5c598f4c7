"""From rows of bfloat16 to the bytes of a chunk, and back.

names.py              the one list of codecs
registry.py           how each is encoded, decoded and spelled in zarr's metadata
bf16_planes.py        the plane split on the CPU, and the bytes of its chunks
bf16_planes_torch.py  the same split on tensors of any device
row_norms.py          squared norms of rows
compiled.py           functions compiled by numba, kept on disk where that is possible
cache_lines.py        rows written past the processor's caches, and fetched ahead
zstd_frame.py         zstd frames of a size that is known
checksum.py           the crc32c behind every chunk
plugins.py            the plane split for zarr and numcodecs
"""
