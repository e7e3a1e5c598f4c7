"""The version of the training algorithm, and the code that it speaks of."""

from compute.code_version import CodeVersion

TRAIN_VERSION = CodeVersion(
    number=2,
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
    code_sha256="7cebc7977321f9d715dfcf25a6a32e23053f57fb37d2996288a2fe8ad16b95b1",
)
"""Raised by hand when the same inputs give other weights or another log."""
