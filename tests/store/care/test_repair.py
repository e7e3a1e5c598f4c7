"""Damaged files come back by content: from DVC's cache, from its remote past a damaged cache, or made again."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dvc.repo import Repo

from store.cache.manifest import Manifest, load_manifest
from store.cache.moments import ShardSums
from store.cache.split import SPLITS
from store.care.dvc_versions import files_in
from store.care.repair import HarvestAgain, Repaired, repair
from store.care.verify import verify
from store.errors import IncompleteCache, MismatchedCache, StoreError
from store.lease import Lease
from store.read.cache import ActivationCache
from store.write.writer import CacheWriter
from tests.store.cache_fixture import HOOKS, NUM_HELD_OUT, NUM_SEQUENCES, fill, rows_of, tokens_of, write_cache

MakeCache = Callable[..., Path]
SHARD = f"{HOOKS[0]}/c/1/0"


def damage(folder: Path, *names: str) -> None:
    """Changes a byte in place, as a disk does: whoever has a hard link sees it too."""
    for name in names:
        (folder / name).chmod(0o644)
        with (folder / name).open("r+b") as file:
            file.seek(40)
            byte = file.read(1)[0]
            file.seek(40)
            file.write(bytes([byte ^ 1]))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def run_repair(
    folder: Path, *, output: str = "", harvest_again: HarvestAgain | None = None, accept: bool = False
) -> Repaired:
    return repair(
        folder,
        output=output,
        scratch=folder.with_name(".repair"),
        harvest_again=harvest_again,
        accept_different_bytes=accept,
        num_threads=1,
    )


def fixture_harvest(damaged: Path, *, spoil: str = "") -> HarvestAgain:
    """Makes the fixture's rows again; spoilt `rows` are of a machine that rounds otherwise, `tokens` of a new text."""

    def harvest_again(manifest: Manifest, target: Path, lease: Lease) -> None:
        with CacheWriter(
            target, manifest.spec, num_sequences=NUM_SEQUENCES, num_held_out_sequences=NUM_HELD_OUT, lease=lease
        ) as writer:
            writer.reuse_shards(files_in(damaged))
            for split in SPLITS:
                for shard in writer.missing_shards(split):
                    if spoil:
                        _fill_otherwise(writer, shard, spoil)
                    else:
                        fill(writer, shard, split)
            writer.finish()

    return harvest_again


def _fill_otherwise(writer: CacheWriter, shard: int, what: str) -> None:
    first, last = shard * 12, shard * 12 + writer.shard_sequences(shard)
    rows = {hook: rows_of(hook, last)[first * 8 :].copy() for hook in HOOKS}
    rows[HOOKS[0]][0, 0] ^= 1
    sums = {
        hook: ShardSums(num_rows=len(bits), sum=[0.0] * 48, sum_of_squares=[1.0] * 48) for hook, bits in rows.items()
    }
    tokens = tokens_of(last)[first:]
    tokens[0, 1] += what == "tokens"
    writer.submit_shard(shard, tokens=tokens, rows=rows, sums=sums).result()


@pytest.fixture
def tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache tracked by a real DVC, hard-linked to its cache and pushed to a remote, as the working folder."""
    repository = tmp_path / "repository"
    write_cache(repository / "data" / "cache")
    for name in ("GLOBAL_CONFIG_DIR", "SYSTEM_CONFIG_DIR", "SITE_CACHE_DIR"):
        monkeypatch.setenv(f"DVC_{name}", str(tmp_path / name))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.chdir(repository)
    Repo.init(no_scm=True)
    with Repo() as repo, repo.config.edit() as config:
        config["cache"]["type"] = "hardlink,symlink"
        config["core"]["remote"] = "backup"
        config["remote"]["backup"] = {"url": str(tmp_path / "remote")}
    with Repo() as repo:
        repo.add("data/cache")
        repo.push()
    return Path("data/cache")


@pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning")  # DVC uses it
def test_files_come_back_from_dvcs_cache_or_past_a_damaged_one_from_its_remote(tracked: Path, tmp_path: Path) -> None:
    whole = contents(tracked)
    # One file is only damaged here, because its link to DVC's cache was cut; others are damaged there as well.
    (tracked / SHARD).unlink()
    (tracked / SHARD).write_bytes(whole[SHARD])
    damage(tracked, SHARD, f"{HOOKS[1]}/c/0/0", "held_out/tokens/c/0/0", "shards/00002.json", "manifest.json")
    (tracked / "tokens/zarr.json").unlink()
    done = run_repair(tracked, output="data/cache")
    broken = [f"{HOOKS[1]}/c/0/0", SHARD, "held_out/tokens/c/0/0", "manifest.json", "shards/00002.json"]
    assert sorted(done.restored) == sorted(done.problems) == sorted([*broken, "tokens/zarr.json"])
    assert contents(tracked) == whole
    assert not tracked.with_name(".repair").exists()
    # Without a copy anywhere, and without harvesting, the error says what is missing; the rest is put back first.
    (tmp_path / "remote").rename(tmp_path / "unreachable")
    (tracked / "tokens/c/3/0").unlink()
    damage(tracked, SHARD)
    with pytest.raises(StoreError, match=rf"found no copy with the recorded bytes of .*{SHARD} in DVC's cache or rem"):
        run_repair(tracked, output="data/cache")
    assert (tracked / "tokens/c/3/0").read_bytes() == whole["tokens/c/3/0"]
    (problem,) = verify(tracked, full=True, num_threads=1)
    assert SHARD in problem


def test_a_whole_cache_is_left_alone_and_files_that_are_not_listed_are_named(make_cache: MakeCache) -> None:
    folder = make_cache()
    before = {path: path.stat().st_ino for path in folder.rglob("*")}
    assert run_repair(folder) == Repaired()
    assert {path: path.stat().st_ino for path in folder.rglob("*")} == before
    (folder / "notes.txt").write_text("mine")
    assert run_repair(folder).unlisted == [str(folder / "notes.txt")]
    assert (folder / "notes.txt").exists()


def test_what_has_no_copy_is_made_again_and_only_that(make_cache: MakeCache) -> None:
    folder = make_cache()
    whole, inodes = contents(folder), {path: path.stat().st_ino for path in folder.rglob("*") if path.is_file()}
    damaged = [SHARD, "zarr.json", "held_out/shards/00001.json"]
    damage(folder, *damaged)
    done = run_repair(folder, harvest_again=fixture_harvest(folder))
    assert sorted(done.harvested) == sorted(damaged)
    assert contents(folder) == whole
    changed = {path.relative_to(folder).as_posix() for path, inode in inodes.items() if path.stat().st_ino != inode}
    assert changed == set(damaged)


def test_other_bytes_are_refused_unless_they_are_accepted_and_then_the_lineage_says_so(make_cache: MakeCache) -> None:
    folder = make_cache()
    before = load_manifest(folder)
    damage(folder, SHARD)
    broken = contents(folder)
    with pytest.raises(
        MismatchedCache,
        match=rf"expected the recorded bytes .*, got others for {folder / SHARD}\. .*--accept-different",
    ):
        run_repair(folder, harvest_again=fixture_harvest(folder, spoil="rows"))
    assert contents(folder) == broken
    done = run_repair(folder, harvest_again=fixture_harvest(folder, spoil="rows"), accept=True)
    assert done.changed == [SHARD]
    after = load_manifest(folder)
    (origin,) = after.lineage
    assert (origin.kind, origin.source_digest, origin.changed_shards) == (
        "repaired",
        before.digest,
        ("shards/00001.json",),
    )
    assert verify(folder, full=True, num_threads=1) == []
    expected = rows_of(HOOKS[0], NUM_SEQUENCES)
    expected[12 * 8, 0] ^= 1
    np.testing.assert_array_equal(ActivationCache(folder).rows(HOOKS[0], np.arange(328)), expected)


def test_rows_of_another_text_are_refused_even_where_other_bytes_are_accepted(make_cache: MakeCache) -> None:
    folder = make_cache()
    damage(folder, SHARD)  # the tokens of that shard are whole
    before = contents(folder)
    with pytest.raises(
        MismatchedCache,
        match=rf"to give the recorded tokens again, got others for {folder / 'tokens/c/1/0'}\. The text",
    ):
        run_repair(folder, harvest_again=fixture_harvest(folder, spoil="tokens"), accept=True)
    assert contents(folder) == before


def test_a_cache_without_manifest_or_of_another_kind_is_not_repaired(make_cache: MakeCache, tmp_path: Path) -> None:
    folder = make_cache()
    damage(folder, "manifest.json")
    with pytest.raises(IncompleteCache, match=r"found no whole copy of .*json in .*pipeline\.py harvest`: it keeps"):
        run_repair(folder)
    (tmp_path / "zarr").mkdir()
    (tmp_path / "zarr" / "zarr.json").write_text("{}")
    with pytest.raises(MismatchedCache, match="found a zarr group of another software"):
        run_repair(tmp_path / "zarr")
