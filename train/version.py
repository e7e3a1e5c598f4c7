"""The version of the training algorithm, and the code that it speaks of."""

from compute.code_version import CodeVersion

TRAIN_VERSION = CodeVersion(
    number=5,
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
        "train/decoders.py",
        "train/group.py",
        "train/hypergradient.py",
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
        "train/task_gradients.py",
        "train/task_lambdas.py",
        "train/variants.py",
    ),
    code_sha256="b7074857301974cdc0a1824d95b461a088222193b37c68b790cde793ea9988e5",
)
"""Raised by hand when the same inputs give other weights or another log."""
