"""The version of the harvest, and the code that it speaks of."""

from compute.code_version import CodeVersion

HARVEST_VERSION = CodeVersion(
    number=2,
    files=(
        "harvest/activations.py",
        "harvest/encode.py",
        "harvest/inputs.py",
        "harvest/moments.py",
        "harvest/run.py",
        "harvest/shards.py",
        "harvest/text.py",
        "harvest/tokens.py",
        "language_model/checkpoint.py",
        "language_model/families.py",
        "language_model/hooks.py",
        "language_model/load.py",
        "language_model/special_tokens.py",
        "language_model/standard_library.py",
        "language_model/structure.py",
        "language_model/tokenizer.py",
        "store/cache",
        "store/codec",
        "store/write",
    ),
    code_sha256="d665e75a5996a1de29768e3c3433acd4957f7a243267dcc0cca32e30b1004b12",
)
"""Raised by hand when the same spec would give other bytes: packing, rounding, what is left out."""
