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
    code_sha256="99fa70b3072e491ca955f8cc44d030aa4ab6c36e2c53ca6976a4f47c6beb2a12",
)
"""Raised by hand when the same spec would give other bytes: packing, rounding, what is left out."""
