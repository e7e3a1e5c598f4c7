"""The version of the harvest, and the code that it speaks of."""

from compute.code_version import CodeVersion

HARVEST_VERSION = CodeVersion(
    number=3,
    files=(
        "harvest/activations.py",
        "harvest/hub.py",
        "harvest/counts.py",
        "harvest/documents.py",
        "harvest/not_finite.py",
        "harvest/earlier_windows.py",
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
    code_sha256="41f3c1d1d8a035d30b189e6398b0c9b4e78079d39567923e18031571fd06fcfd",
)
"""Raised by hand when the same spec would give other bytes: packing, rounding, what is left out."""
