"""Every mistake that a newcomer can make in params.yaml has one clear message, before anything is removed."""

import re
from collections import Counter
from pathlib import Path

import pytest

from params import ParamsError, load_params
from pipeline import main

PARAMS = Path(__file__).parent.parent / "params.yaml"
GRIDS = (("a", "baseline"), ("b", "fixed-1"))
FIXED_1 = "{kind: fixed, value: 1.0}"


@pytest.mark.parametrize("name", ["qwen2.5", "a b", "a[0]"])
def test_a_profile_that_dvc_would_read_as_a_path_is_refused(tmp_path: Path, name: str) -> None:
    text = PARAMS.read_text().replace("profile: embedded", f"profile: {name}", 1)
    (tmp_path / "params.yaml").write_text(text.replace("\n  embedded:", f"\n  {name}:", 1))
    renamed = {"qwen2.5": "qwen2-5", "a b": "a-b", "a[0]": "a-0-"}[name]
    expected = (
        f"profiles: expected names of letters, digits, - and _, got {name!r}: DVC reads a dot as a step into a record. "
        f"Rename the profile, as to {renamed!r}"
    )
    with pytest.raises(ParamsError, match=re.escape(expected)):
        load_params(tmp_path / "params.yaml")


def test_all_profiles_are_complete(tmp_path: Path) -> None:
    embedded = load_params(PARAMS)
    assert (embedded.profile_name, embedded.profile.language_model.name) == ("embedded", "embedded")
    five = ["baseline", "fixed-1", "adaptive", "schedule-0p1-10", "adaptive-high"]
    assert list(embedded.variants) == [*five, *(f"{name}-seed-{seed}" for name in five for seed in (1, 2))]
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.read_text().replace("profile: embedded", "profile: gemma-2-2b"))
    gemma = load_params(path).profile
    assert gemma.language_model.name == "google/gemma-2-2b"
    assert [hook.split(".")[1] for hook in gemma.harvest.hooks] == ["5", "12", "19"]
    assert gemma.train.hook == "blocks.12.hook_resid_post"
    path.write_text(PARAMS.read_text().replace("profile: embedded", "profile: my-model"))
    mine = load_params(path).profile
    assert (mine.language_model.name, mine.harvest.sequences_per_chunk) == ("./my-model", None)
    # Embedded: null is what it is without the keys, and its cache keeps its identity.
    assert (embedded.profile.harvest.separator, embedded.profile.train.num_rows) == (None, None)


def test_a_profile_adds_variants_of_its_own(tmp_path: Path) -> None:
    path, text = tmp_path / "params.yaml", PARAMS.read_text()
    hooks = "hooks: {of: [baseline], values: {hook: [blocks.2.hook_resid_post, blocks.3.hook_resid_pre]}}"
    text = text.replace(
        "hooks: [blocks.2.hook_resid_post]", "hooks: [blocks.2.hook_resid_post, blocks.3.hook_resid_pre]", 1
    )
    path.write_text(text.replace("    grid: {}", f"    grid: {{{hooks}}}", 1))
    variants = load_params(path).variants
    assert list(variants)[15:] == ["baseline-hook-blocks_3_hook_resid_pre"]  # the other is the baseline itself
    path.write_text(text.replace("    grid: {}", f"    grid: {{{hooks.replace('3.hook', '0.hook')}}}", 1))
    with pytest.raises(ParamsError, match=r"variant baseline-hook-blocks_0_hook_resid_pre: hook: expected one of the"):
        load_params(path)
    twice = "grid: {same: {of: all, values: {seed: [1]}}}"
    text = text.replace("\ngrid:\n", "\ngrid:\n  same: {of: [baseline], values: {seed: [5]}}\n")
    path.write_text(text.replace("    grid: {}", f"    {twice}", 1))
    with pytest.raises(
        ParamsError, match=r"profiles.embedded.grid: expected names that `grid` does not have, got same"
    ):
        load_params(path)


def test_the_synthetic_profile_trains_at_every_world_with_every_seed(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = PARAMS.read_text().replace("profile: embedded", "profile: synthetic", 1)
    path.write_text(text)
    params = load_params(path)
    assert params.profile.language_model is None
    assert len(params.profile.harvest.hooks) == 3
    places = Counter(
        (variant.hook or params.profile.train.hook, variant.seed or 0) for variant in params.variants.values()
    )
    assert set(places) == {(hook, seed) for hook in params.profile.harvest.hooks for seed in (0, 1, 2)}
    assert len(set(places.values())) == 1
    assert len(params.profile.harvest.hooks) * 3 * places["synthetic.orthogonal", 0] == len(params.variants)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "language_model: null",
            "language_model: {name: embedded, revision: null, compute_dtype: float32}",
            "expected either a language_model or known features in harvest.synthetic, got language_model embedded and "
            "known features",
        ),
        (
            "num_features: 128",
            "num_feature: 128",
            r"harvest\.synthetic\.num_feature: unknown key.*did you mean num_feat",
        ),
        ("hook: synthetic.orthogonal", "hook: synthetic.other", r"train\.hook: expected one of the harvested hooks"),
        (
            "hooks: [synthetic.orthogonal,",
            "hooks: [synthetic.orthogonl,",
            "expected hooks among the worlds of synthetic",
        ),
    ],
)
def test_a_mistake_about_known_features_has_one_message(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = PARAMS.read_text().replace("profile: embedded", "profile: synthetic", 1)
    assert old in text
    path = tmp_path / "params.yaml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ParamsError, match=message):
        load_params(path)


def test_the_example_of_a_grid_in_the_file_is_the_study(tmp_path: Path) -> None:
    text = PARAMS.read_text()
    lines = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("#   ") and "values:" in line]
    assert len(lines) == 2
    path = tmp_path / "params.yaml"
    path.write_text(text.replace("\ngrid:\n", "\n".join(["\ngrid:", *lines, ""])))
    # Five variants, three L0 (46 is the profile's), three seeds; and three small values.
    assert len(load_params(path).variants) == 45 + 3


MISTAKES = {
    "an unknown key": (
        "num_rows: 1000000",
        "num_row: 1000000",
        r"embedded\.harvest\.num_row: unknown key; expected one of text, synthetic, hooks, num_rows.*mean num_rows",
    ),
    "an unknown key of a variant": (
        FIXED_1,
        FIXED_1 + "\n    l2: 3.0",
        r"variants\.fixed-1\.l2: unknown key; expected one of lambda, hook, architecture, d_sae, l1,",
    ),
    "an unknown key of a lambda": (
        FIXED_1,
        "{kind: fixed, valu: 1.0}",
        r"variants\.fixed-1\.lambda\.valu: unknown key; expected one of kind, value \(did you mean value\?\)",
    ),
    "a missing key": ("      l1: ", "      #l1: ", r"profiles\.embedded\.train\.l1: missing; every key must be given"),
    "a word for a number": (
        "num_rows: 1000000",
        "num_rows: many",
        r"harvest\.num_rows: expected a valid integer, got 'many' \(str\)",
    ),
    "a fraction for a count": ("seed: 0", "seed: 0.5", r"train\.seed: expected a valid integer, got 0\.5 \(float\)"),
    "a negative number": ("num_rows: 1000000", "num_rows: -5", r"harvest\.num_rows: expected greater than 0, got -5"),
    "a negative lambda": (FIXED_1, "{kind: fixed, value: -1.0}", r"fixed-1\.lambda\.value: expected .*>= 0, got -1\.0"),
    "a negative l1": (FIXED_1, FIXED_1 + "\n    l1: -2.0", r"variants\.fixed-1\.l1: expected .*>= 0, got -2\.0"),
    "an unknown kind of lambda": (
        FIXED_1,
        "{kind: fixd, value: 1.0}",
        r"fixed-1\.lambda\.kind: expected 'fixed'.*got 'fixd' \(did you mean fixed\?\)\. Choose one of them",
    ),
    "a lambda without its kind": (
        FIXED_1,
        "{value: 1.0}",
        r"fixed-1\.lambda: expected a record with a kind, such as {kind: \.\.\.}, got {'value': 1\.0}\. Add its kind",
    ),
    "a grid of a field of a record that its variants do not give": (
        "grid: {}",
        "grid: {g: {of: [baseline], values: {architecture.k: [8]}}}",
        r"grid\.g\.architecture: expected a record with a kind, .*got {'k': 8}\. Add its kind",
    ),
    "a grid of an unknown field": (
        "grid: {}",
        "grid: {g: {of: all, values: {sede: [1, 2]}}}",
        r"grid\.g\.sede: unknown key; expected one of lambda, .*did you mean seed",
    ),
    "a grid of a field that one of its variants does not have": (
        "grid: {}",
        "grid: {g: {of: all, values: {lambda.value: [1.0]}}}",
        r"grid\.g\.lambda\.value: unknown key; expected one of kind, start, parametrisation",
    ),
    "a grid with a value out of range": (
        "grid: {}",
        "grid: {g: {of: [baseline], values: {l1: [1.0, -2.0]}}}",
        r"grid\.g\.l1: expected a number >= 0, got -2\.0",
    ),
    "a grid without a template": (
        "grid: {}",
        "grid: {g: {values: {seed: [1]}}}",
        r"grid\.g\.of: missing; every key must be given",
    ),
    "a grid of something else": ("grid: {}", "grid: {g: {of: 7, values: {seed: [1]}}}", r"grid\.g\.of: expected `all`"),
    "a grid of variants that are not there": (
        "grid: {}",
        "grid: {g: {of: [basline], values: {seed: [1]}}}",
        r"grid\.g\.of: expected `all`, or names among baseline, .*got basline",
    ),
    "a grid too large": (
        "grid: {}",
        f"grid: {{g: {{of: all, values: {{seed: {list(range(600))}}}}}}}",
        r"grid\.g: expected at most 512 variants in all, got 3000 from this grid",
    ),
    "two grids too large together": (
        "grid: {}",
        f"grid: {{{', '.join(f'{g}: {{of: [{v}], values: {{seed: {list(range(300))}}}}}' for g, v in GRIDS)}}}",
        r"grid\.b: expected at most 512 variants in all, got 300 from this grid",
    ),
    "settings that do not go together": (
        FIXED_1,
        FIXED_1 + "\n    architecture: {kind: topk, k: 1000}",
        r"variant fixed-1: expected architecture\.k of at most d_sae = 384, got 1000",
    ),
    "an unknown text": ("{kind: standard-library}", "{kind: book}", r"harvest\.text\.kind: expected .*got 'book'"),
    "a duplicate variant": (
        "  fixed-1:",
        "  baseline:",
        r"line 1\d: found duplicate key \"baseline\": expected every key once",
    ),
    "a badly named variant": (
        "  fixed-1:",
        "  fixed.1:",
        r"variants\.fixed\.1: expected a variant name.*got 'fixed\.1'",
    ),
    "a number as a variant's name": ("  fixed-1:", "  7:", r"variants\.7: expected a variant name.*got 7"),
    "no baseline": ("  baseline:", "  base:", r"variants: expected one named 'baseline'"),
    "an unknown hook": ("hooks: [blocks.2.hook_resid_post]", "hooks: [blocks.2.mlp]", r"harvest\.hooks: unknown hook"),
    "a hook that is not harvested": (
        "hook: blocks.2.hook_resid_post",
        "hook: blocks.1.hook_resid_post",
        r"train\.hook: expected one of the harvested hooks",
    ),
    "batches larger than the cache": (
        "batch_rows: 1024",
        "batch_rows: 2000000",
        r"train\.batch_rows: expected at most the 999998 rows that are harvested, got 2000000",
    ),
    "more held-out text than there is": (
        "num_sparsity_sequences: 192",
        "num_sparsity_sequences: 1024",
        r"evaluate\.core: expected at most harvest\.num_held_out_sequences = 512 sequences to be read, got 1024",
    ),
    "a single latent": ("d_sae: 384", "d_sae: 1", r"train\.d_sae: expected 2 to 16777216 latents, got 1"),
    "sequences without a row to predict": (
        "context_length: 128",
        "context_length: 2",
        r"harvest\.context_length: expected greater than or equal to 3, got 2",
    ),
    "an unknown profile": (
        "profile: embedded",
        "profile: embeded",
        r"profile: expected one of embedded.*did you mean embedded",
    ),
    "YAML that cannot be parsed": ("profile: embedded", "profile: [", r"line \d+: expected YAML"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_has_one_message_that_names_its_place(mistake: str, tmp_path: Path) -> None:
    old, new, message = MISTAKES[mistake]
    text = PARAMS.read_text()
    assert old in text
    path = tmp_path / "params.yaml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ParamsError, match=message) as raised:
        load_params(path)
    assert str(path) in str(raised.value)


def test_all_mistakes_are_listed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(
        PARAMS.read_text().replace("num_rows: 1000000", "num_rows: -5").replace("      lr: 1.0e-3", "      lr: 0")
    )
    with pytest.raises(ParamsError) as raised:
        load_params(path)
    assert len(str(raised.value).splitlines()) == 2


def test_an_empty_file_is_no_settings(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("")
    with pytest.raises(ParamsError, match="expected the keys profile, profiles and variants, got None"):
        load_params(tmp_path / "params.yaml")


def test_a_missing_text_file_and_a_foreign_device_end_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = PARAMS.read_text().replace("{kind: standard-library}", "{kind: files, paths: [no.txt]}", 1)
    (tmp_path / "params.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert main(["language_model"]) == 1
    assert "expected a text file at no.txt, found nothing. Correct harvest.text.paths" in capsys.readouterr().err
    assert main(["harvest", "--device", "gpu"]) == 1
    assert "expected a torch device such as cpu, cuda or cuda:1, got 'gpu'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--threads", "0"])
    assert "expected a whole number >= 1, got '0'" in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"expected .*nowhere\.yaml, found no such file"):
        load_params(tmp_path / "nowhere.yaml")


def test_a_layer_that_the_model_does_not_have_ends_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.read_text().replace("blocks.2.hook_resid_post", "blocks.4.hook_resid_post"))
    monkeypatch.chdir(tmp_path)
    assert main(["language_model"]) == 1
    error = capsys.readouterr().err
    assert "error: layer out of range: expected a hook on layers 0 to 3 of embedded, got 'blocks.4" in error
    assert not (tmp_path / "data").exists()


def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["harvests"])
    assert stop.value.code == 2
    assert "invalid choice: 'harvests'" in capsys.readouterr().err


def test_a_store_command_on_a_foreign_folder_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["store", "info", str(tmp_path)]) == 1
    assert "found an empty folder. Harvest or pull it first" in capsys.readouterr().err


def test_flags_of_training_explain_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for flag in ("--memory-gib", "--checkpoint-every-seconds"):
        with pytest.raises(SystemExit):
            main(["train", flag, "-1"])
        assert f"argument {flag}: expected a number > 0, got '-1'" in capsys.readouterr().err
    monkeypatch.setenv("PIPELINE_MEMORY_GIB", "plenty")
    with pytest.raises(SystemExit):
        main(["train"])
    assert "argument --memory-gib: expected a number > 0, got 'plenty'" in capsys.readouterr().err
    assert main(["export"]) == 1
    assert "error: expected trained SAEs in models, found none" in capsys.readouterr().err
