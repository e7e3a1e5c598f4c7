"""Writing an activation cache.

writer.py   shard by shard, the manifest last
encoder.py  threads that encode and commit shards in bounded memory
"""
