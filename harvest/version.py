"""The version of the harvest, and the code that it speaks of."""

from compute.code_version import CodeVersion

HARVEST_VERSION = CodeVersion(
    number=2,
    files=(
        "harvest/activations.py",
        "harvest/hub.py",
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
    code_sha256="23de33d8cd60dd9440bbb9ea2315dca339e7dc4ace90c7f7705ea08e4e406d16",
)
"""Raised by hand when the same spec would give other bytes: packing, rounding, what is left out."""
