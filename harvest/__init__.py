"""From text to the activation cache: text -> tokens -> activations -> shards.

config.py           its settings
text_config.py      those of its text
version.py          its version
synthetic_config.py  the settings of known features in the place of text and model
run.py              the stage: reuse shards, compute the rest, put the cache in place
inputs.py           the language model and the text, found and identified
estimate.py         what it needs of model, memory and disk, checked before it starts
text.py             documents: standard library, files, hub data set, or a mixture
files.py            which local files, and that they stay as they were
formats.py          the documents in a file of each kind
hub.py              those of a hub data set, streamed
interleave.py       their order: sources in turns by weight, and shuffled in windows
encode.py           token ids, long documents in pieces
tokens.py           documents packed into windows, held-out ones apart
documents.py        which document a token comes from
streams.py          a stream of tokens, cut into shards of windows
counts.py           what becomes of each part of the text
windows.py          the windows by shard, packed ahead of the model and kept on disk
earlier_windows.py  windows that an earlier cache has
worlds.py           known features, and how they fire
synthetic.py        activations made from them
activations.py      several hooks in one pass that ends at the deepest
reuse.py            shards of earlier harvests
probe.py            a few sequences through model, codec and disk: what a harvest will take
dispatch.py         computed here, or on workers
partitions.py       ranges of shards, on the workers of a Dask cluster
shards.py           the shards that are missing, computed and handed to the writer
not_finite.py       sequences that are left out of a shard, and replaced
moments.py          exact sums of the stored rows
repair.py           damaged shards harvested again, for `store repair`
"""
