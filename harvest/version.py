"""The version of the harvest, and the code that it speaks of."""

from compute.code_version import CodeVersion

HARVEST_VERSION = CodeVersion(
    number=2,
    files=(
        "harvest/activations.py",
        "harvest/moments.py",
        "harvest/run.py",
        "harvest/shards.py",
        "harvest/text.py",
        "harvest/tokens.py",
        "language_model/hooks.py",
        "language_model/load.py",
        "language_model/standard_library.py",
        "store/cache",
        "store/codec",
        "store/write",
    ),
    code_sha256="1082f2533f4dac9dc833c31777fe51d78054ee19219795abdcd056383c84afc1",
)
"""Raised by hand when the same spec would give other bytes: packing, rounding, what is left out."""
