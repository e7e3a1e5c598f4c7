"""The version of the harvest, and the code that it speaks of."""

from compute.code_version import CodeVersion

HARVEST_VERSION = CodeVersion(
    number=3,
    files=(
        "harvest/activations.py",
        "harvest/hub.py",
        "harvest/counts.py",
        "harvest/encode.py",
        "harvest/files.py",
        "harvest/formats.py",
        "harvest/inputs.py",
        "harvest/interleave.py",
        "harvest/moments.py",
        "harvest/dispatch.py",
        "harvest/partitions.py",
        "harvest/reuse.py",
        "harvest/run.py",
        "harvest/shards.py",
        "harvest/text.py",
        "harvest/streams.py",
        "harvest/synthetic.py",
        "harvest/worlds.py",
        "harvest/tokens.py",
        "harvest/windows.py",
        "language_model/checkpoint.py",
        "language_model/families.py",
        "language_model/hooks.py",
        "language_model/load.py",
        "language_model/sites.py",
        "language_model/special_tokens.py",
        "language_model/standard_library.py",
        "language_model/structure.py",
        "language_model/tokenizer.py",
        "store/cache",
        "store/codec",
        "store/write",
    ),
    code_sha256="f91877bd3bac852ed3e271d5ad1ca666fcb5e599da79f14078e7185a00465494",
)
"""Raised by hand when the same spec would give other bytes: packing, rounding, what is left out."""
