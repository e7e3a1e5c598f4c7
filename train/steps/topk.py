"""Which latents of a batch stay active, in the kinds of SAE that count them.

On a CPU the k-th largest is found by bisection on the numbers' bits: positive floats are ordered as the integers of the
same bits, and a pass only compares and counts. A general selection (torch's topk, numpy's partition) takes two to four
times as long. Numbers that equal the k-th largest all stay.

Shape suffixes: V variants, B rows, F latents. The batch is the last axis.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from store.codec.compiled import compiled

THRESHOLD_RATE = 0.01
"""Rate of the running mean of the smallest activation that fired, in runs of 1000 steps or more."""
THRESHOLD_STEPS = 10.0
"""In a shorter run the rate is this over the number of steps: the mean must forget where training began."""
_LANES = 32
_INFINITY = 0x7F800000  # bits of the largest float32 that is ordered


def keep_top_of_rows_(pre_FB: Tensor, *, k: int) -> None:
    """relu of the k largest of each row, 0 elsewhere, in place."""
    if _by_bits(pre_FB):
        bits_FB, B = pre_FB.view(torch.int32).numpy(), pre_FB.shape[1]
        _in_threads(lambda start, stop: _keep_top_of_columns(bits_FB, k, start, stop), B)
    else:
        largest = pre_FB.topk(k, dim=0, sorted=False)
        pre_FB.zero_().scatter_(0, largest.indices, largest.values.relu_())


def keep_top_of_batch_(a_FB: Tensor, *, count: int) -> Tensor:
    """Keeps the `count` largest of activations >= 0, sets the rest to 0, in place.

    Returns the smallest kept, (); 0 where fewer than `count` are positive.
    """
    smallest = smallest_of_top(a_FB, count=count)
    if a_FB.device.type == "cpu":  # one pass, with a number that a GPU would have to wait for
        below = torch.nextafter(smallest, torch.zeros_like(smallest))
        torch.threshold_(a_FB, float(below), 0.0)
    else:
        a_FB.masked_fill_(a_FB < smallest, 0.0)
    return smallest


def smallest_of_top(a_FB: Tensor, *, count: int) -> Tensor:
    """The `count`-th largest of numbers >= 0, ()."""
    if _by_bits(a_FB):
        bits = _kth_largest(a_FB.view(torch.int32).numpy().reshape(-1), count)
        return torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    return a_FB.flatten().topk(count, sorted=False).values.min()


def selection_bytes(count: int, *, number_bytes: int, device: torch.device) -> int:
    """Memory that choosing among `count` numbers takes: on a GPU a sorted copy and places, on a CPU none."""
    return 0 if device.type == "cpu" else count * (number_bytes + 8)


def _by_bits(numbers: Tensor) -> bool:
    return numbers.device.type == "cpu" and numbers.dtype == torch.float32 and numbers.is_contiguous()


def _in_threads(work: Callable[[int, int], None], num_columns: int) -> None:
    """Calls work(start, stop) over all columns, on as many threads as torch's products have."""
    num_threads = torch.get_num_threads()
    share = -(-num_columns // (num_threads * _LANES)) * _LANES
    starts = range(0, num_columns, share)
    if len(starts) == 1:
        work(0, num_columns)
        return
    with ThreadPoolExecutor(num_threads) as threads:
        for done in [threads.submit(work, start, min(start + share, num_columns)) for start in starts]:
            done.result()


@compiled
def _keep_top_of_columns(bits_FB: NDArray[np.int32], k: int, start: int, stop: int) -> None:
    """Sets all but the k largest positive floats of the columns start to stop to 0, given as bits, in place."""
    F = bits_FB.shape[0]
    block = np.empty((_LANES, F), np.int32)
    least = np.empty(_LANES, np.int32)
    for first in range(start, stop, _LANES):
        width = min(_LANES, stop - first)
        for f in range(F):
            for lane in range(width):
                block[lane, f] = bits_FB[f, first + lane]
        for lane in range(width):
            least[lane] = max(_lower_bound(block[lane], k), 1)
        for f in range(F):
            for lane in range(width):
                if bits_FB[f, first + lane] < least[lane]:
                    bits_FB[f, first + lane] = 0


@compiled
def _lower_bound(bits: NDArray[np.int32], k: int) -> int:
    """Bits that k of the positive floats reach, given as bits, or more where some equal the k-th; 0 where fewer are."""
    low, high = 0, _INFINITY + 1
    while high - low > 1:
        middle = np.int32((low + high) // 2)
        count = 0
        for index in range(bits.size):
            count += bits[index] >= middle
        if count == k:
            return int(middle)
        if count > k:
            low = int(middle)
        else:
            high = int(middle)
    return low


@compiled
def _kth_largest(bits: NDArray[np.int32], k: int) -> int:
    """Bits of the k-th largest of floats >= 0, given as bits."""
    bound = _lower_bound(bits, k)
    smallest = np.int32(_INFINITY)
    for index in range(bits.size):
        if bits[index] >= bound:
            smallest = min(smallest, bits[index])
    return int(smallest)


def threshold_rate(num_steps: int) -> float:
    """Rate of the running threshold in a run of so many steps; at most 1.

    At 0.01 alone, the threshold of a run of 195 steps was 9 % above the last batches' (L0 of 25 for k = 30): the
    smallest activation falls while an SAE learns, and a seventh of the mean still came from its first step.
    """
    return min(1.0, max(THRESHOLD_RATE, THRESHOLD_STEPS / num_steps))


class RunningThreshold:
    """The threshold that SAEs of a batch's largest activations fire above once they are trained, per variant.

    A running mean of the smallest activation that fired: the first itself, then moved by `rate` of the way.
    """

    def __init__(self, num_variants: int, *, rate: float, device: torch.device) -> None:
        self._rate = rate
        self.value_V = torch.full((num_variants,), torch.nan, dtype=torch.float64, device=device)
        """NaN before the first step."""

    def update(self, smallest_V: Tensor) -> None:
        """Takes in the smallest activations that fired in one batch, (V,)."""
        smallest_V = smallest_V.to(torch.float64)
        moved_V = self.value_V + self._rate * (smallest_V - self.value_V)
        self.value_V.copy_(torch.where(self.value_V.isnan(), smallest_V, moved_V))

    def of(self, variant: int) -> float:
        """The threshold of one variant, 0 before the first step."""
        return float(self.value_V[variant].nan_to_num(0.0))
