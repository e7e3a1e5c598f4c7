"""Whole harvests of a miniature model: what is stored, what is kept, and how a killed run goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file

from harvest.config import HarvestConfig
from harvest.dispatch import HarvestResources
from harvest.estimate import check_free_space
from harvest.moments import BadActivation
from harvest.run import run
from harvest.text import BadText
from harvest.tokens import TooLittleText
from language_model.config import LanguageModelConfig
from language_model.load import load_model
from language_model.tokenizer import load_tokenizer
from store.cache.manifest import Manifest, load_manifest
from store.cache.split import is_held_out
from store.cache.text_account import account_lines
from store.errors import Busy
from store.lease import exclusive_lock
from store.read.cache import ActivationCache
from store.record_file import write_record_file

REPOSITORY = Path(__file__).parents[2]
HOOK = "blocks.1.hook_resid_post"
LAST_HOOK = "blocks.2.hook_resid_post"

MOMENTS = (
    "after two shards",
    "while the third shard is written",
    "while the metadata are written",
    "before the folder is put in place",
)
# Harvests in a process for each moment, which kills itself there without any chance to tidy up. The processes are
# forked from one that has the imports behind it, and that prints how each of them ended.
KILLED = """
import json, os, signal, sys
from pathlib import Path
import harvest.run, store.write.writer
from harvest.config import HarvestConfig
from harvest.dispatch import HarvestResources
from language_model.config import LanguageModelConfig

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def harvest_until(moment, config, model, output, scratch):
    class Dying(store.write.writer.CacheWriter):
        def submit_shard(self, shard, **arguments):
            if moment == "while the third shard is written" and shard == 2:
                Path.replace = die
            done = super().submit_shard(shard, **arguments)
            done.result()
            if moment == "after two shards" and shard == 1:
                die()
            return done

        def finish(self, **arguments):
            if moment == "while the metadata are written":
                store.write.writer.combine_moments = die
            super().finish(**arguments)
            if moment == "before the folder is put in place":
                die()

    harvest.run.CacheWriter = Dying
    harvest.run.run(
        HarvestConfig.model_validate(config),
        model=LanguageModelConfig.model_validate(model),
        output=Path(output), scratch=Path(scratch), resources=HarvestResources("cpu"), reuse=True,
    )

for job in json.loads(sys.argv[1]):
    process = os.fork()
    if process == 0:
        harvest_until(**job)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


class Workplace:
    """An output, scratch, a model, settings, and one way to harvest with them."""

    def __init__(self, folder: Path, model_folder: Path, settings: dict[str, Any]) -> None:
        self.output, self.scratch = folder / "data" / "activations", folder / "data" / ".partial"
        self.model = LanguageModelConfig(name=str(model_folder), revision=None, compute_dtype="float32")
        self.settings = settings

    def harvest(
        self,
        *,
        reuse: bool = True,
        resources: HarvestResources | None = None,
        **changes: Any,  # noqa: ANN401 - settings of any type
    ) -> Manifest:
        config = HarvestConfig.model_validate(self.settings | changes)
        manifest = run(
            config, model=self.model, output=self.output, scratch=self.scratch, reuse=reuse,
            resources=resources or HarvestResources("cpu"),
        )  # fmt: skip
        assert manifest is not None
        return manifest

    def shard_files(self, hook: str = HOOK) -> dict[str, tuple[int, bytes]]:
        """(inode, bytes) by name: a shard that was not made again keeps its inode."""
        files = sorted((self.output / hook / "c").glob("*/0"))
        return {path.parent.name: (path.stat().st_ino, path.read_bytes()) for path in files}


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    """120 documents of a few dozen tokens."""
    path = tmp_path / "stories.jsonl"
    texts = [f"Story {n}: there were {n * n} foxes, and each of them had {n + 1} names. <bos>" for n in range(120)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def settings(harvest_settings: dict[str, Any], stories: Path) -> dict[str, Any]:
    return harvest_settings | {"text": {"kind": "files", "paths": [str(stories)], "column": "text"}}


@pytest.fixture
def workplace(tmp_path: Path, tiny_model_folder: Path, settings: dict[str, Any]) -> Workplace:
    return Workplace(tmp_path / "first", tiny_model_folder, settings)


@pytest.fixture
def other_workplace(tmp_path: Path, tiny_model_folder: Path, settings: dict[str, Any]) -> Workplace:
    return Workplace(tmp_path / "second", tiny_model_folder, settings)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_cache_holds_the_rows_of_the_plain_model_for_its_own_tokens(workplace: Workplace) -> None:
    manifest = workplace.harvest(hooks=[HOOK, LAST_HOOK], num_rows=20 * 7 + 6)
    assert (manifest.num_sequences, manifest.num_rows, manifest.num_held_out_sequences) == (20, 140, 3)
    cache = ActivationCache(workplace.output)
    assert cache.manifest.digest == manifest.digest
    tokens = torch.from_numpy(cache.tokens(np.arange(20)).astype(np.int64))
    plain = load_model(Path(workplace.model.name), dtype=torch.float32, device="cpu")
    last: list[torch.Tensor] = []
    plain.base_model.get_submodule("layers.2").register_forward_hook(lambda _m, _i, output: last.append(output))
    for start in range(0, 20, 4):
        with torch.inference_mode():
            states = plain(input_ids=tokens[start : start + 4], output_hidden_states=True).hidden_states[2]
        for hook, expected in ((HOOK, states), (LAST_HOOK, last.pop())):
            rows = cache.rows(hook, np.arange(start * 7, (start + 4) * 7))
            rounded = expected[:, 1:].to(torch.bfloat16).view(torch.uint16).numpy()
            assert np.array_equal(rows, rounded.reshape(28, 32))


def test_the_moments_are_those_of_the_stored_rows(workplace: Workplace) -> None:
    moments = workplace.harvest().moments[HOOK]
    bits = ActivationCache(workplace.output).rows(HOOK, np.arange(140))
    rows = torch.from_numpy(bits).view(torch.bfloat16).to(torch.float64).numpy()
    assert moments.num_rows == 140
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=0, atol=1e-14)
    np.testing.assert_allclose(moments.mean_square, (rows**2).mean(axis=0), rtol=1e-14)
    assert moments.mean_squared_norm == pytest.approx((rows**2).sum(axis=1).mean(), rel=1e-14)


def test_the_windows_are_the_documents_of_each_side_end_to_end(workplace: Workplace, stories: Path) -> None:
    manifest = workplace.harvest()
    tokenizer = load_tokenizer(Path(workplace.model.name))
    cache = ActivationCache(workplace.output)
    texts = [json.loads(line)["text"] for line in stories.read_text().splitlines()]
    for windows, held_out in ((cache.tokens(np.arange(20)), False), (cache.held_out_tokens(), True)):
        side = "".join(text for text in texts if is_held_out(text, fraction=0.25) == held_out)
        assert (windows[:, 0] == manifest.spec.model.bos_token_id).all()
        assert (windows[:, 1:] != manifest.spec.model.bos_token_id).all()
        assert side.startswith(tokenizer.decode(windows[:, 1:].ravel().tolist(), skip_special_tokens=False))


def test_the_spec_records_text_packing_and_what_was_left_out(workplace: Workplace) -> None:
    spec = workplace.harvest().spec
    assert spec.text["kind"] == "files"
    assert spec.excluded_positions == ("bos",)
    assert "without a separator" in spec.packing
    assert (spec.hooks, spec.compute_dtype, spec.harvest_version) == ((HOOK,), "float32", 3)


def test_the_same_harvest_again_makes_no_shard_and_the_same_bytes(workplace: Workplace) -> None:
    workplace.harvest()
    shards, before = workplace.shard_files(), tree(workplace.output)
    workplace.harvest()
    assert workplace.shard_files() == shards
    assert tree(workplace.output) == before
    workplace.harvest(reuse=False)
    assert {name: data for name, (_, data) in workplace.shard_files().items()} == {
        name: data for name, (_, data) in shards.items()
    }
    assert workplace.shard_files() != shards  # made again, so other inodes
    assert tree(workplace.output) == before


def test_a_larger_budget_keeps_full_shards_and_equals_a_harvest_from_nothing(
    workplace: Workplace, other_workplace: Workplace
) -> None:
    workplace.harvest()  # 20 sequences: shards of 8, 8 and 4
    before = workplace.shard_files()
    workplace.harvest(num_rows=30 * 7)  # 8, 8, 8 and 6
    after = workplace.shard_files()
    assert list(after) == ["0", "1", "2", "3"]
    assert (after["0"], after["1"]) == (before["0"], before["1"])
    assert after["2"] != before["2"]
    other_workplace.harvest(num_rows=30 * 7)
    assert tree(workplace.output) == tree(other_workplace.output)


def test_a_smaller_budget_equals_a_harvest_from_nothing(workplace: Workplace, other_workplace: Workplace) -> None:
    workplace.harvest(num_rows=30 * 7)
    workplace.harvest()
    other_workplace.harvest()
    assert tree(workplace.output) == tree(other_workplace.output)


def test_another_spec_takes_nothing_over(workplace: Workplace, other_workplace: Workplace) -> None:
    workplace.harvest()
    before = workplace.shard_files()
    workplace.harvest(held_out_fraction=0.5)
    assert not {inode for inode, _ in before.values()} & {inode for inode, _ in workplace.shard_files().values()}
    other_workplace.harvest(held_out_fraction=0.5)
    assert tree(workplace.output) == tree(other_workplace.output)


def test_a_model_that_was_renamed_or_stored_otherwise_keeps_every_shard_and_the_data_digest(
    workplace: Workplace, tiny_model_folder: Path, tmp_path: Path
) -> None:
    before, shards = workplace.harvest(), workplace.shard_files()
    renamed = shutil.copytree(tiny_model_folder, tmp_path / "renamed")
    (renamed / "README.md").write_text("a word more")
    workplace.model = LanguageModelConfig(name=str(renamed), revision=None, compute_dtype="float32")
    assert workplace.harvest().digest == before.digest
    assert workplace.shard_files() == shards


def test_where_nothing_can_be_reused_the_ingredient_that_differs_is_named(
    workplace: Workplace, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workplace.harvest()
    assert "can be reused" not in capsys.readouterr().err
    workplace.harvest(held_out_fraction=0.5)
    expected = "harvest: nothing of the earlier cache can be reused: held_out_fraction was 0.25, and is 0.5\n"
    assert expected in capsys.readouterr().err
    other = shutil.copytree(tiny_model_folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"attn_logit_softcapping": 1.0}))
    workplace.model = LanguageModelConfig(name=str(other), revision=None, compute_dtype="float32")
    workplace.harvest(held_out_fraction=0.5)
    assert "can be reused: model.weights_sha256 was " in capsys.readouterr().err


def test_a_cache_of_an_earlier_version_is_said_to_be_one(
    workplace: Workplace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("language_model.identity.IDENTIFIED_BY_TENSORS", "")
    workplace.harvest()
    monkeypatch.undo()
    workplace.harvest()
    said = capsys.readouterr().err
    assert "can be reused: model.weights_sha256 was " in said
    assert "of an earlier version, which identified models by their files; harvesting again is enough" in said


def test_a_killed_harvest_goes_on_and_ends_with_the_bytes_of_one_that_was_not(
    workplace: Workplace, tmp_path: Path, tiny_model_folder: Path, settings: dict[str, Any]
) -> None:
    workplace.harvest()
    expected = tree(workplace.output)
    killed = {moment: Workplace(tmp_path / moment, tiny_model_folder, settings) for moment in MOMENTS}
    jobs = [
        {
            "moment": moment,
            "config": place.settings,
            "model": place.model.model_dump(),
            "output": str(place.output),
            "scratch": str(place.scratch),
        }
        for moment, place in killed.items()
    ]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(jobs)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    assert [int(line) for line in done.stdout.splitlines()] == [-signal.SIGKILL] * len(MOMENTS), done.stderr
    for place in killed.values():
        assert not place.output.exists()
        committed = {path.parent.name: path.stat().st_ino for path in place.scratch.rglob(f"cache/{HOOK}/c/*/0")}
        assert {"0", "1"} <= set(committed)
        place.harvest()
        assert tree(place.output) == expected
        shards = place.shard_files()
        assert {name: shards[name][0] for name in ("0", "1")} == {name: committed[name] for name in ("0", "1")}
        assert [path.name for path in place.scratch.iterdir()] == [".lease"]


def write_many_files(folder: Path) -> list[str]:
    """14 files of every kind, as a person gives them: long texts first, tables last."""
    folder.mkdir()
    for number in range(12):
        kind = "md" if number % 2 else "txt"
        story = "".join(f"In chapter {number} fox {n} had {n + number} of all those names.\n\n" for n in range(40))
        (folder / f"{number:02d}.{kind}").write_text(story)
    rows = [{"text": f"Row {n}: a short story of {n * n} hens."} for n in range(80)]
    (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:40]))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[40:]), folder / "y.parquet")
    return sorted(path.name for path in folder.iterdir())


def test_what_became_of_every_file_is_recorded_and_a_file_that_gave_nothing_is_named(
    workplace: Workplace, tmp_path: Path
) -> None:
    """The fault: 14 files were listed, five documents were read, and the report listed 14 files."""
    names = write_many_files(tmp_path / "texts")
    text = {"kind": "files", "paths": [str(tmp_path / "texts")], "column": "text"}
    account = workplace.harvest(text=text, num_rows=60 * 7).text_account
    assert account is not None
    assert [part.name for part in account.parts] == names
    used = sum(part.num_training_tokens for part in account.parts)
    assert used == 60 * 7
    assert sum(part.num_held_out_tokens for part in account.parts) == 3 * 7
    told = "\n".join(account_lines(account))
    for part in account.unused_parts():
        assert part.name in told.split("NOTHING is from")[1]
    assert 0 < len(account.unused_parts()) < 14  # whole chapters of 2000 characters: the first ones fill the budget
    # Cut into documents, and read in turns, every file is in the data.
    account = workplace.harvest(text=text | {"split_characters": 100}, num_rows=250 * 7).text_account
    assert account is not None
    assert account.unused_parts() == []
    assert "NOTHING" not in "\n".join(account_lines(account))


def test_a_mixture_is_harvested_by_its_weights_in_characters(workplace: Workplace, tmp_path: Path) -> None:
    for name in ("hens", "eggs"):
        rows = ({"text": f"{n:04d} {name} were here, of {n * 3:04d} in all."} for n in range(1000))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [
        {"kind": "files", "paths": [str(tmp_path / "hens.jsonl")], "column": "text", "weight": 3.0},
        {"kind": "files", "paths": [str(tmp_path / "eggs.jsonl")], "column": "text", "shuffle": {"seed": 0}},
    ]
    manifest = workplace.harvest(text={"kind": "mixture", "sources": sources}, num_rows=400 * 7)
    assert manifest.text_account is not None
    hens, eggs = manifest.text_account.parts
    assert (hens.name, hens.source, eggs.name, eggs.source) == ("hens.jsonl", 0, "eggs.jsonl", 1)
    assert abs(hens.num_characters / eggs.num_characters - 3) < 0.1
    assert "weight 3: " in account_lines(manifest.text_account)[0]


def test_an_account_depends_on_text_and_budget_and_not_on_how_the_cache_came_about(
    workplace: Workplace, other_workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = workplace.harvest().text_account
    other_workplace.harvest(num_rows=30 * 7)
    assert other_workplace.harvest(num_rows=16 * 7).text_account != account
    assert other_workplace.harvest().text_account == account
    assert tree(workplace.output) == tree(other_workplace.output)


def test_with_no_shard_missing_no_text_is_read(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    workplace.harvest()
    before = tree(workplace.output)
    monkeypatch.setattr("harvest.shards.load_tokenizer", lambda _: pytest.fail("text is tokenized"))
    monkeypatch.setattr("harvest.shards.load_cut_model", lambda *_, **__: pytest.fail("the language model is loaded"))
    workplace.harvest()
    assert tree(workplace.output) == before


def test_a_harvest_that_ended_behind_its_last_shard_reads_no_text_again(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("harvest.run.replace_folder", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            workplace.harvest()
    monkeypatch.setattr("harvest.shards.load_tokenizer", lambda _: pytest.fail("text is tokenized"))
    account = workplace.harvest().text_account
    assert account is not None
    assert account.parts[0].num_training_tokens == 20 * 7


def test_a_cache_without_an_account_is_read_as_ever_and_gets_one_with_the_next_harvest(workplace: Workplace) -> None:
    manifest = workplace.harvest()
    earlier = manifest.model_copy(update={"text_account": None})
    write_record_file(workplace.output / "manifest.json", earlier)
    assert "text_account" not in (workplace.output / "manifest.json").read_text()
    assert load_manifest(workplace.output) == earlier
    assert earlier.digest == manifest.digest  # an account tells about the data and is none
    assert workplace.harvest() == manifest


def test_sizes_of_chunks_and_shards_that_were_chosen_are_recorded_resolved(workplace: Workplace) -> None:
    spec = workplace.harvest(sequences_per_chunk=None, chunks_per_shard=None).spec
    # 7 rows of 32 channels of 2 bytes are 448 bytes; 8192 sequences are 3.7 MB, and 69 chunks of them 253 MB.
    assert (spec.sequences_per_chunk, spec.chunks_per_shard) == (8192, 69)


def test_shards_of_an_interrupted_harvest_serve_one_with_another_budget(
    workplace: Workplace, other_workplace: Workplace
) -> None:
    workplace.harvest()
    spec_digest = ActivationCache(workplace.output).manifest.spec.digest
    interrupted = workplace.scratch / f"activations-{spec_digest[:16]}-20-3" / "cache"
    interrupted.parent.mkdir()
    workplace.output.rename(interrupted)
    inode = (interrupted / HOOK / "c" / "1" / "0").stat().st_ino
    workplace.harvest(num_rows=30 * 7)
    assert workplace.shard_files()["1"][0] == inode
    other_workplace.harvest(num_rows=30 * 7)
    assert tree(workplace.output) == tree(other_workplace.output)
    assert not interrupted.exists()


def test_a_harvest_leaves_the_scratch_of_other_specs_alone_and_none_of_its_own(workplace: Workplace) -> None:
    (workplace.scratch / "activations-0123456789abcdef-20-3" / "cache").mkdir(parents=True)
    workplace.harvest()
    assert sorted(path.name for path in workplace.scratch.iterdir()) == [".lease", "activations-0123456789abcdef-20-3"]


def test_a_failed_harvest_leaves_the_earlier_output_alone(workplace: Workplace, stories: Path) -> None:
    workplace.harvest()
    before = tree(workplace.output)
    with pytest.raises(TooLittleText, match=r"Lower harvest.num_rows or give more text"):
        workplace.harvest(num_rows=10**6)
    with pytest.raises(ValueError, match=r"expected a hook on layers 0 to 2 of .*, got 'blocks.3.hook_resid_post'"):
        workplace.harvest(hooks=["blocks.3.hook_resid_post"])
    with pytest.raises(ValueError, match=r"expected a context_length of at most the \d+ positions of .*, got 100000"):
        workplace.harvest(context_length=100_000, num_rows=10**6)
    with pytest.raises(ValueError, match=r"shards of at most 4.3 GB a hook, .*, got 6.4 GB. Lower"):
        workplace.harvest(num_rows=10**8, chunks_per_shard=10**9)
    stories.unlink()
    with pytest.raises(BadText, match="expected a text file at"):
        workplace.harvest()
    assert tree(workplace.output) == before


def test_two_harvests_cannot_write_at_once(workplace: Workplace) -> None:
    with exclusive_lock(workplace.scratch), pytest.raises(Busy, match=f"is being written by process {os.getpid()} on"):
        workplace.harvest()


def test_a_harvest_that_cannot_fit_on_the_disk_is_refused_before_it_starts(tmp_path: Path) -> None:
    check_free_space(tmp_path, num_rows=1000, d_model=32)
    with pytest.raises(ValueError, match=r"expected at least 37647058.8 GB of free space below .* rows, got"):
        check_free_space(tmp_path, num_rows=10**15, d_model=32)


def test_an_activation_that_is_not_finite_ends_the_harvest_and_says_where(
    workplace: Workplace, tiny_model_folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model_folder, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.embed_tokens.weight"][5:] = 3e38  # times the embedding's scale of sqrt(32): infinite
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    workplace.model = LanguageModelConfig(name=str(broken), revision=None, compute_dtype="float32")
    with pytest.raises(
        BadActivation, match=r"at blocks.1.hook_resid_post, got .* in sequence 0, position 1 \(document 1 of stories"
    ):
        workplace.harvest()
