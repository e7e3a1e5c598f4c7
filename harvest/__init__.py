"""From text to the activation cache: text -> tokens -> activations -> shards.

config.py       its settings
version.py      its version
run.py          the stage: take over, compute the rest, put in place
estimate.py     what it asks of memory and disk, before it starts
text.py         documents: standard library, files, hub data set
tokens.py       packed windows, held-out documents apart
activations.py  several hooks in one pass that ends at the deepest
shards.py       the shards that are missing, computed and handed to the writer
moments.py      exact sums of the stored rows
remake.py       damaged shards again, for `store repair`
"""
