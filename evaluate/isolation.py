"""Keeps benchmarks from disturbing each other: sae-bench leaves random states, grad mode and working folder changed.

Two of its results also depend on how often random numbers were drawn before. So every SAE begins from the same state.
"""

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch


@contextlib.contextmanager
def undisturbed(*, seed: int) -> Iterator[None]:
    """Inside, all random states begin at `seed`; afterwards they, grad mode, folder and environment are as before."""
    of_python, of_numpy, folder, variables = random.getstate(), np.random.get_state(), Path.cwd(), dict(os.environ)
    grad = torch.is_grad_enabled()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            torch.set_grad_enabled(grad)
            random.setstate(of_python)
            np.random.set_state(of_numpy)
            os.chdir(folder)
            for name in set(os.environ) - set(variables):
                del os.environ[name]
            os.environ.update(variables)
