"""The truth about synthetic rows: the features that they were made from, and which of them are on in the held-out rows.

A safetensors file per hook. N features, d channels, R held-out rows:

directions       (N, d) float32, of length 1
frequencies      (N,)   float64, the share of samples on which each feature is on, as measured
parents          (N,)   int64, the feature without which this one is never on; -1 for none
held_out_firing  (R, ceil(N / 8)) uint8: bit i % 8, from the lowest, of byte i // 8 says whether feature i is on
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from store.cache.manifest import Manifest
from store.cache.paths import truth_path
from store.errors import DamagedFile, StoreError
from store.files.protocol import Files, address

_FIELDS = ("directions", "frequencies", "parents", "held_out_firing")


@dataclass(frozen=True)
class Truth:
    """The known features of one hook, as the module says."""

    directions: NDArray[np.float32]
    frequencies: NDArray[np.float64]
    parents: NDArray[np.int64]
    held_out_firing: NDArray[np.uint8]

    @property
    def num_features(self) -> int:
        """N."""
        return len(self.directions)

    @property
    def mean_active(self) -> float:
        """The true L0: how many features are on in a sample, on average."""
        return float(self.frequencies.sum())

    @cached_property
    def depths(self) -> NDArray[np.int64]:
        """(N,): how many parents stand above each feature."""
        depths = np.zeros(self.num_features, dtype=np.int64)
        above = self.parents.copy()
        while (has_parent := above >= 0).any():
            depths += has_parent
            above = np.where(has_parent, self.parents[above], -1)
        return depths

    def fires(self) -> NDArray[np.bool_]:
        """(R, N): which feature is on in which held-out row."""
        bits = np.unpackbits(self.held_out_firing, axis=1, bitorder="little")
        return bits[:, : self.num_features].astype(np.bool_)


def packed(fires: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(R, N) as `held_out_firing` holds it."""
    return np.packbits(fires, axis=1, bitorder="little")


def truth_bytes(truth: Truth) -> bytes:
    """The file of one hook."""
    return save({name: np.ascontiguousarray(getattr(truth, name)) for name in _FIELDS})


def read_truth(files: Files, manifest: Manifest, hook: str) -> Truth:
    """The truth about a hook of a cache.

    Raises:
        StoreError: the rows are those of a language model, the hook is another's, or the file is not as it was written.
    """
    name = truth_path(hook)
    if name not in manifest.files:
        raise StoreError(
            f"expected known features of the hook {hook} in {files.location}, found none: its rows are those of "
            f"{manifest.spec.model.name}. Harvest with harvest.synthetic"
        )
    where = address(files, name)
    data = files.read(name)
    try:
        arrays = load(data)
    except SafetensorError as error:
        raise DamagedFile(f"expected safetensors in {where}, got {error}. Run `pipeline.py store repair`") from error
    num_features, _ = arrays["directions"].shape if arrays.get("directions") is not None else (0, 0)
    num_rows = manifest.split_rows("held_out")
    expected = {
        "directions": ((num_features, manifest.spec.model.d_model), np.float32),
        "frequencies": ((num_features,), np.float64),
        "parents": ((num_features,), np.int64),
        "held_out_firing": ((num_rows, -(-num_features // 8)), np.uint8),
    }
    got = {name: (array.shape, array.dtype.type) for name, array in arrays.items()}
    if got != expected:
        raise DamagedFile(f"expected the arrays {expected} in {where}, got {got}. Run `pipeline.py store repair`")
    truth = Truth(**arrays)
    is_tree = (truth.parents >= -1).all() and (truth.parents < np.arange(num_features)).all()
    if not is_tree:
        raise DamagedFile(f"expected parents with smaller numbers than their children in {where}. Run store repair")
    return truth
