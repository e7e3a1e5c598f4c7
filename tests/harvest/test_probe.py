"""What a harvest will take and when it pays, in numbers that can be checked by hand."""

from pathlib import Path

import pytest

from harvest.probe import Estimate, Probe, passes_to_break_even

PROBE = Probe(
    tokens_per_second=1000.0,
    stored_share=0.5,
    encode_bytes_per_second=1e6,
    decode_bytes_per_second=2e6,
    write_bytes_per_second=1e6,
    read_bytes_per_second=1e5,
    model_bytes=10**6,
    memory_bytes=10**9,
    num_threads=2,
    on_gpu=False,
)


def estimate(**changes: object) -> Estimate:
    """100,000 tokens and 80,000 rows of 10 channels at each of two hooks, nothing there yet."""
    given = {
        "probe": PROBE, "hooks": ("a", "b"), "d_model": 10, "num_tokens": 100_000, "num_rows": 160_000,
        "all_tokens": 100_000, "all_rows": 80_000, "num_hooks": 2, "free_bytes": 10**9, "row_memory_bytes": 10**6,
        "num_workers": 1,
    }  # fmt: skip
    return Estimate(**(given | changes))  # type: ignore[arg-type]


def test_sizes_and_times_follow_from_the_probe() -> None:
    found = estimate()
    assert (found.raw_bytes, found.stored_bytes) == (3_200_000, 1_600_000)
    assert found.seconds == 100.0 + 1.6  # a forward pass, and 3.2 MB through the codec in two threads
    assert found.read_seconds == 8.0  # 1.6 MB of one hook, 0.8 MB on disk at 0.1 MB/s; decoding would take 0.4 s
    assert found.forward_seconds == 100.0
    assert found.break_even == 2  # 101.6 + 2 * 8 < 2 * 100, and 101.6 + 8 > 100


def test_a_slow_disk_decides_and_workers_share_the_pass() -> None:
    slow = Probe(**{**PROBE.__dict__, "write_bytes_per_second": 1e4})
    assert estimate(probe=slow).seconds == 160.0
    assert estimate(num_workers=4).seconds == pytest.approx(25.0 + 1.6)
    gpu = Probe(**{**PROBE.__dict__, "on_gpu": True})
    assert estimate(probe=gpu).seconds == 100.0


def test_storing_never_pays_where_reading_is_slower_than_the_model() -> None:
    assert passes_to_break_even(store=100.0, read=10.0, forward=60.0) == 3  # equal at 2: 120 and 120
    assert passes_to_break_even(store=60.0, read=0.0, forward=60.0) == 2
    assert passes_to_break_even(store=100.0, read=60.0, forward=60.0) is None
    slow = Probe(**{**PROBE.__dict__, "read_bytes_per_second": 1e3})
    assert any("break-even: never" in line for line in estimate(probe=slow).lines())


def test_what_cannot_fit_is_refused(tmp_path: Path) -> None:
    estimate().refuse_what_cannot_fit(tmp_path)
    with pytest.raises(ValueError, match=r"expected about 1\.6 MB of free space below .*, got 1\.5 MB\. Free some"):
        estimate(free_bytes=1_500_000).refuse_what_cannot_fit(tmp_path)
    with pytest.raises(ValueError, match=r"expected about 2\.0 GB of free memory for the rows of two shards, got 1\.0"):
        estimate(row_memory_bytes=2 * 10**9).refuse_what_cannot_fit(tmp_path)
    unknown = Probe(**{**PROBE.__dict__, "memory_bytes": None})
    estimate(probe=unknown, row_memory_bytes=10**15).refuse_what_cannot_fit(tmp_path)
