"""Reading an activation cache.

cache.py       an open cache: batches, rows and tokens by number, dask arrays
batches.py     shuffled batches from a pool that threads fill
long_rows.py   rows that are left out of them for their norm
rows_above.py  how many those are in a part of a cache
device.py      batches on a GPU, copied ahead from pinned memory
shard.py       one shard file: chunks found, checked, decoded
tokens.py      token windows
"""
