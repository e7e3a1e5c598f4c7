"""Writing an activation cache.

writer.py         shard by shard, the manifest last
growing.py        which shards are there, and which are taken from other caches
reuse.py          shards of other caches, hook by hook
known_digests.py  digests of files that were read before
encoder.py        threads that encode and commit shards in bounded memory
"""
