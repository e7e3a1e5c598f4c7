"""Which language model it is, how it is loaded, and the embedded one.

config.py            its settings
families.py          the names of a family's parts and settings
hooks.py             the places where activations are read
sites.py             activations there, read and replaced in a running model
hub.py               a hub that does not answer, found out in seconds
load.py              a name to a checked checkpoint, its identity, the model
identity.py          a digest of what decides its numbers
memory.py            what was found out before
checkpoint.py        the files of a checkpoint, and what their headers say
structure.py         its layers, tensors and adapter, before a weight is loaded
tokenizer.py         tokenizer.json as it is
special_tokens.py    BOS, EOS and padding, on which all files must agree
standard_library.py  the text that every Python carries
train_embedded.py    trains the embedded model (by hand, once)
embedded/            the embedded model's files
"""
