"""From text to the activation cache.

config.py       its settings
text.py         documents: standard library, files, hub data set
tokens.py       packed windows, held-out documents apart
activations.py  several hooks in one pass that ends at the deepest
moments.py      exact sums of the stored rows
run.py          the stage: take over, compute the rest, put in place
remake.py       damaged shards again, for `store repair`
"""
