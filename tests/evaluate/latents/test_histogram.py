"""Histograms whose range is found on the way are those of all values at once."""

import numpy as np
import pytest
import torch

from evaluate.latents.histogram import NUM_BINS, ActivationHistograms


def add(histograms: ActivationHistograms, latent: list[int], value: list[float], *, num_latents: int) -> None:
    values = torch.tensor(value)
    largest = torch.zeros(num_latents).scatter_reduce(0, torch.tensor(latent), values, "amax")
    histograms.add(torch.tensor(latent), values, largest)


def test_bins_are_a_power_of_two_wide_and_the_largest_value_is_in_their_upper_half() -> None:
    histograms = ActivationHistograms(3, torch.device("cpu"))
    # 1 needs a range of 2, so bins of 2/32: the value 1 is at the lower edge of bin 16. 31.9 needs 32: bins of 1.
    add(histograms, [0, 0, 1, 1], [1.0, 0.03, 31.9, 0.5], num_latents=3)
    width, counts = histograms.figures()
    assert width.tolist() == [2 / 32, 1.0, 0.0]
    assert np.flatnonzero(counts[0]).tolist() == [0, 16]
    assert np.flatnonzero(counts[1]).tolist() == [0, 31]
    assert counts[2].sum() == 0


@pytest.mark.parametrize("order", ["rising", "falling", "random"])
def test_the_order_of_values_makes_no_difference(order: str) -> None:
    generator = np.random.default_rng(0)
    values = np.exp(generator.normal(0.0, 3.0, size=400)).astype(np.float32)
    given = {"rising": np.sort(values), "falling": -np.sort(-values), "random": values}[order]
    histograms = ActivationHistograms(1, torch.device("cpu"))
    for start in range(0, 400, 9):
        part = given[start : start + 9].tolist()
        add(histograms, [0] * len(part), part, num_latents=1)
    (width,), (counts,) = histograms.figures()
    assert NUM_BINS * width / 2 <= values.max() < NUM_BINS * width
    assert counts.tolist() == np.histogram(values, bins=np.arange(NUM_BINS + 1) * width)[0].tolist()
