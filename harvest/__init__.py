"""From text to the activation cache: text -> tokens -> activations -> shards.

config.py       its settings
version.py      its version
run.py          the stage: reuse shards, compute the rest, put the cache in place
inputs.py       the language model and the text, found and identified
estimate.py     what it needs of model, memory and disk, checked before it starts
text.py         documents: standard library, files, hub data set
hub.py          records of a hub data set, streamed
encode.py       token ids, long documents in pieces
tokens.py       packed windows, held-out documents apart
activations.py  several hooks in one pass that ends at the deepest
shards.py       the shards that are missing, computed and handed to the writer
moments.py      exact sums of the stored rows
repair.py       damaged shards harvested again, for `store repair`
"""
