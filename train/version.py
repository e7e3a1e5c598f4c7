"""The version of the training algorithm, and the code that it speaks of."""

from compute.code_version import CodeVersion

TRAIN_VERSION = CodeVersion(
    number=2,
    files=(
        "compute/device.py",
        "store/cache/order.py",
        "store/codec",
        "store/read",
        "store/sae",
        "train/architectures.py",
        "train/artefacts.py",
        "train/checkpoint.py",
        "train/config.py",
        "train/group.py",
        "train/lambda_controller.py",
        "train/lambdas.py",
        "train/loop.py",
        "train/metrics.py",
        "train/penalties.py",
        "train/schedule.py",
        "train/steps",
        "train/task.py",
        "train/variants.py",
    ),
    code_sha256="fded2926744dba56d87d1e258f1315b286048e29040d6a8e3eb724ee64ca9b92",
)
"""Raised by hand when the same inputs give other weights or another log."""
