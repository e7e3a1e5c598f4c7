"""The version of the harvest, and the code that it speaks of."""

from compute.code_version import CodeVersion

HARVEST_VERSION = CodeVersion(
    number=2,
    files=(
        "harvest/activations.py",
        "harvest/hub.py",
        "harvest/inputs.py",
        "harvest/moments.py",
        "harvest/run.py",
        "harvest/shards.py",
        "harvest/text.py",
        "harvest/tokens.py",
        "language_model/families.py",
        "language_model/hooks.py",
        "language_model/load.py",
        "language_model/standard_library.py",
        "store/cache",
        "store/codec",
        "store/write",
    ),
    code_sha256="8baf691448c84e6030837283f68ca54608b2f640daa7a08de8bb4d08b41a3868",
)
"""Raised by hand when the same spec would give other bytes: packing, rounding, what is left out."""
