"""Code that decides results does not change without a word: its version is raised, or the change is confirmed.

When a test here fails because of a digest: does the same input now give other results? Then raise `number`. If not (a
rename, a faster way to the same bits), leave it. In both cases write the digest that the message gives into
`code_sha256`, so that the next reader knows that somebody looked.
"""

import dataclasses
from pathlib import Path

import pytest

from compute.code_version import CodeVersion, code_digest, python_files, tell_if_edited
from evaluate.benchmarks.registry import BENCHMARKS
from harvest.inputs import open_inputs
from harvest.version import HARVEST_VERSION
from params import load_params
from store.cache.spec import CacheSpec
from tests.imports import ROOT, closure
from train.variants import resolve_variants
from train.version import TRAIN_VERSION

VERSIONS: dict[str, tuple[CodeVersion, str]] = {
    "harvest/version.py": (HARVEST_VERSION, "harvest/run.py"),
    "train/version.py": (TRAIN_VERSION, "train/task.py"),
} | {
    f"evaluate/benchmarks/{name}.py": (benchmark.version, f"evaluate/benchmarks/{name}.py")
    for name, benchmark in BENCHMARKS.items()
}
"""Where a version stands, and the file from which all that it speaks of is imported."""

SHARED = {
    "compute/code_version.py": "this very mechanism",
    "store/atomic.py": "how files are put in place, not what is in them",
    "store/errors.py": "words",
    "store/files": "whatever it reads is compared with checksums",
    "store/identity.py": "names and limits of fields; what is in them is part of every key",
    "store/lease.py": "who may write, not what",
    "store/machine.py": "what errors of the machine are, in words",
    "store/process.py": "which process holds a lease",
    "store/record.py": "a change would change every key",
    "store/record_file.py": "a record that is read is the one that was written, by its digest",
    "store/replace.py": "how folders are put in place, not what is in them",
}
_OF_BENCHMARKS = {
    "compute/code_version.py": "this very mechanism",
    "compute/memory.py": "refuses, or does not",
    "evaluate/judge/budget.py": "refuses, or does not",
    "evaluate/judge/limits.py": "refuses, or does not",
    "evaluate/kept.py": "what is found is what was kept, by its digest",
    "language_model/config.py": "settings are part of a result's inputs",
    "language_model/hub.py": "whether the hub is asked; what it gives is checked",
    "language_model/identity.py": "names the model in a result's inputs, and changes nothing that it computes",
    "language_model/memory.py": "remembers what holds for the same files only",
    "store/atomic.py": "how files are put in place, not what is in them",
    "store/cache": "what is read from a cache is checked against its manifest",
    "store/codec": "what is read from a cache is checked against checksums",
    "store/errors.py": "words",
    "store/files": "whatever it reads is compared with checksums",
    "store/identity.py": "names and limits of fields",
    "store/lease.py": "who may write, not what",
    "store/machine.py": "what errors of the machine are, in words",
    "store/process.py": "which process holds a lease",
    "store/read": "what is read from a cache is checked against checksums",
    "store/record.py": "a change would change every key",
    "store/record_file.py": "a record that is read is the one that was written, by its digest",
    "store/replace.py": "how folders are put in place, not what is in them",
    "store/sae/artefact.py": "weights are checked against the digest that is part of a result's inputs",
}
"""Of all benchmarks."""
_WITHOUT_LANGUAGE_MODEL = {
    "evaluate/benchmarks/context.py": "what it offers is not used",
    "evaluate/loaded_model.py": "no language model is loaded",
    "language_model": "no language model is loaded",
    "store/sae/weights.py": "what the type holds; nothing is encoded",
}
"""Of benchmarks that need none."""
WAIVED = {
    "harvest/version.py": SHARED
    | {
        "harvest/config.py": "settings are part of the spec",
        "harvest/text_config.py": "settings are part of the spec",
        "harvest/synthetic_config.py": "settings are part of the spec",
        "harvest/estimate.py": "refuses, or does not",
        "harvest/version.py": "the version itself",
        "compute/cluster.py": "where a shard is computed, not what is in it",
        "compute/memory.py": "refuses, or does not",
        "compute/progress.py": "says what happens",
        "compute/software.py": "refuses, or does not",
        "compute/stop.py": "when a run stops, and the next goes on behind the same shards",
        "harvest/probe.py": "says what it will take, and refuses or does not",
        "store/harvest_log.py": "how long it took",
        "language_model/config.py": "settings are part of the spec",
        "language_model/memory.py": "remembers what holds for the same files only",
        "language_model/hub.py": "whether the hub is asked; what it gives is checked",
        "language_model/identity.py": "names the model in the spec, and changes nothing that it computes",
        "store/care/dvc_versions.py": "where pieces are looked for; each is checked by its bytes",
    },
    "train/version.py": SHARED
    | {
        "store/cache": "what is read from a cache is checked against its manifest; order.py is in the list",
        "compute/progress.py": "says what happens",
        "compute/software.py": "refuses, or does not",
        "compute/stop.py": "decides when a run stops, and it continues to the same bytes",
        "train/checks.py": "refuses, or does not",
        "train/telemetry.py": "shows what is logged elsewhere",
        "train/version.py": "the version itself",
    },
} | {
    f"evaluate/benchmarks/{name}.py": _OF_BENCHMARKS
    | ({} if "language_model" in benchmark.needs else _WITHOUT_LANGUAGE_MODEL)
    for name, benchmark in BENCHMARKS.items()
}
"""Files that are imported and do not decide results, each with its reason."""


@pytest.mark.parametrize("where", VERSIONS)
def test_code_that_decides_results_is_what_was_confirmed_with_its_version(where: str) -> None:
    version, _ = VERSIONS[where]
    assert version.edited() is None, (
        f"the code of version {version.number} in {where} was edited. Raise `number` there if the same input gives "
        f"other results; in any case set code_sha256={code_digest(version.files)!r}"
    )


@pytest.mark.parametrize("where", VERSIONS)
def test_every_file_that_a_result_comes_through_is_in_the_list_or_waived_with_a_reason(where: str) -> None:
    version, start = VERSIONS[where]
    listed = set(python_files(version.files))
    waived = set(python_files(tuple(WAIVED[where])))
    forgotten = sorted(map(str, closure([Path(start)]) - listed - waived))
    assert not forgotten, f"{where} speaks of no {', '.join(forgotten)}: add them, or waive them here with a reason"


@pytest.mark.parametrize("where", VERSIONS)
def test_no_waiver_and_no_entry_is_left_over(where: str) -> None:
    version, start = VERSIONS[where]
    reached = closure([Path(start)])
    shared = _OF_BENCHMARKS if where.startswith("evaluate/") else {}
    for name in (*version.files, *(name for name in WAIVED[where] if name not in shared)):
        assert reached & set(python_files((name,))), f"{name} is imported by nothing that {start} imports"


def test_no_waiver_of_all_benchmarks_is_left_over() -> None:
    reached = closure([Path(start) for _, start in VERSIONS.values() if start.startswith("evaluate/")])
    for name in _OF_BENCHMARKS:
        assert reached & set(python_files((name,))), f"{name} is imported by no benchmark"


@pytest.fixture
def unlike() -> CodeVersion:
    """A version whose code is not what was confirmed."""
    return dataclasses.replace(TRAIN_VERSION, code_sha256="0" * 64)


def test_variants_of_edited_code_have_keys_of_their_own(unlike: CodeVersion, monkeypatch: pytest.MonkeyPatch) -> None:
    params = load_params(ROOT / "params.yaml")
    train, variants = params.profile.train, params.variants
    confirmed = [variant.key for variant in resolve_variants(train, variants, cache_digest="0" * 64)]
    monkeypatch.setattr("train.variants.TRAIN_VERSION", unlike)
    edited = [variant.key for variant in resolve_variants(train, variants, cache_digest="0" * 64)]
    assert not set(confirmed) & set(edited)


def test_a_cache_of_edited_code_is_another_cache(unlike: CodeVersion, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = load_params(ROOT / "params.yaml").profile

    def spec() -> CacheSpec:
        return open_inputs(profile.harvest, profile.language_model).spec

    confirmed = spec()
    monkeypatch.setattr("harvest.inputs.HARVEST_VERSION", unlike)
    assert spec().digest != confirmed.digest
    assert spec().text == {**confirmed.text, "edited_harvest_code": unlike.edited()}


def test_a_stage_says_that_its_code_was_edited_and_what_to_do(
    unlike: CodeVersion, capsys: pytest.CaptureFixture[str]
) -> None:
    tell_if_edited(TRAIN_VERSION, stage="train", where="train/version.py")
    assert capsys.readouterr().err == ""
    tell_if_edited(unlike, stage="train", where="train/version.py")
    told = capsys.readouterr().err
    since = f"since version {TRAIN_VERSION.number} was last confirmed in train/version.py"
    assert f"train: the code that decides results was edited {since}" in told
    assert f"code_sha256={unlike.edited()!r}" in told
