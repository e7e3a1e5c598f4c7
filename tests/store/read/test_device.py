"""Batches on a device are the stream's batches; on a GPU they come from pinned memory (marked gpu)."""

from pathlib import Path

import pytest
import torch

from store.read.batches import BatchStream
from store.read.cache import ActivationCache
from store.read.device import DeviceBatches
from tests.store.cache_fixture import HOOKS


def open_stream(folder: Path) -> BatchStream:
    return ActivationCache(folder).batches(HOOKS[0], batch_rows=50, seed=0, num_epochs=2, pool_bytes=20_000)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_device_gets_the_batches_of_the_stream_and_their_positions(cache_folder: Path, device: str) -> None:
    expected = []
    with open_stream(cache_folder) as stream:
        for bits in stream:
            expected.append((torch.from_numpy(bits.copy()).view(torch.bfloat16), stream.position))
    got = []
    with DeviceBatches(open_stream(cache_folder), torch.device(device)) as batches:
        assert batches.batches_per_epoch == 6
        for rows in batches:
            assert rows.device.type == device
            got.append((rows.cpu().clone(), batches.position))
    assert [position for _, position in got] == [position for _, position in expected]
    for (rows, _), (wanted, _) in zip(got, expected, strict=True):
        assert torch.equal(rows.view(torch.int16), wanted.view(torch.int16))
