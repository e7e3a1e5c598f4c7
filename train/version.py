"""The version of the training algorithm, and the code that it speaks of."""

from compute.code_version import CodeVersion

TRAIN_VERSION = CodeVersion(
    number=3,
    files=(
        "compute/device.py",
        "store/cache/norm_limit.py",
        "store/cache/norms.py",
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
        "train/penalty_term.py",
        "train/schedule.py",
        "train/sparsity.py",
        "train/sparsity_controller.py",
        "train/steps",
        "train/task.py",
        "train/variants.py",
    ),
    code_sha256="752c77500908d0017895af9ee266ce441cbd520fb5b637f4f33e6b55c4b8b3e8",
)
"""Raised by hand when the same inputs give other weights or another log."""
