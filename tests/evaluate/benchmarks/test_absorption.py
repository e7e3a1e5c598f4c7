"""absorption on a small model that knows first letters: sae-bench's own numbers, and absorption that is known."""

import functools
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from sae_bench.evals.absorption import common, feature_absorption, main
from sae_bench.evals.absorption.eval_config import AbsorptionEvalConfig
from sae_bench.evals.absorption.vocab import get_alpha_tokens

from evaluate.benchmarks.absorption import BENCHMARK, LETTERS, AbsorptionConfig
from evaluate.benchmarks.benchmark import NotMeasurable
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.isolation import undisturbed
from evaluate.sae_bench import to_sae_bench
from store.sae.weights import SAEWeights
from tests.evaluate.benchmarks.conftest import CPU, measured
from tests.evaluate.benchmarks.small_models import D_MODEL, write_model

SPECIAL, WORD = 30, 40
"""Channels: of every second word, and from which on a word has its own direction."""
SETTINGS: dict[str, Any] = {
    "random_seed": 42, "f1_jump_threshold": 0.03, "max_k_value": 2, "prompt_template": "{word} has the first letter:",
    "prompt_token_pos": -10, "llm_batch_size": 16, "k_sparse_probe_l1_decay": 0.01, "k_sparse_probe_batch_size": 64,
    "k_sparse_probe_num_epochs": 30, "min_GT_probe_f1": 0.6, "min_feats_for_eval": 20,
    "eval_k_sparse_probe_batch_size": 24, "precalc_k_sparse_probe_sae_acts": True,
}  # fmt: skip
CONFIG = AbsorptionConfig(**SETTINGS, min_model_parameters=0, min_latents=0)
ONE_LATENT = CONFIG.model_copy(update={"max_k_value": 1})
"""A letter has one latent: with two, the absorbing one would be taken for a part of the letter."""


def letter_vector(letter: str, *, number: int = 0) -> list[float]:
    vector = [0.0] * (D_MODEL - 1)
    vector[LETTERS.index(letter.lower())] = 1.0
    vector[SPECIAL] = float(number % 2)
    vector[WORD + number] = 0.3
    return vector


@pytest.fixture(scope="module")
def spelling_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 words for each letter, in whose vectors the letter has a channel."""
    words = {f"{letter}{second}x": letter_vector(letter, number=number)
             for letter in LETTERS for number, second in enumerate(LETTERS[:20])}  # fmt: skip
    answers = {letter.upper(): letter_vector(letter) for letter in LETTERS}
    template = {word: letter_vector(word[0]) for word in ("has", "the", "first", "letter")}
    folder = tmp_path_factory.mktemp("models") / "spelling"
    return write_model(folder, words | answers | template, fillers=[" ", ":", "\n"])


def absorbing_sae() -> SAEWeights:
    """A latent for each letter; that of `a` is silent on every second word, where latent 26 fires for both."""
    d_sae = 32
    W_enc, W_dec, b_enc = torch.zeros(D_MODEL, d_sae), torch.zeros(d_sae, D_MODEL), torch.full((d_sae,), -1e3)
    for number in range(26):
        W_enc[number, number], W_dec[number, number], b_enc[number] = 1.0, 1.0, -0.5
    W_enc[SPECIAL, 0] = -5.0
    W_enc[SPECIAL, 26], W_enc[0, 26], b_enc[26] = 1.0, 1.0, -10.0  # each channel of a word that has it is 8
    W_dec[26, 0], W_dec[26, SPECIAL] = 0.8, 0.6
    W_dec[27:, 60] = 1.0
    return SAEWeights(W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=torch.zeros(D_MODEL))


def random_wide_sae() -> SAEWeights:
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(96, D_MODEL, generator=generator), dim=1)
    return SAEWeights(
        W_enc=W_dec.T.contiguous(), b_enc=torch.full((96,), -0.5), W_dec=W_dec, b_dec=torch.zeros(D_MODEL)
    )


@pytest.mark.filterwarnings("ignore:Precision is ill-defined")
def test_the_numbers_are_those_of_sae_bench_by_itself(
    bench: SimpleNamespace, spelling_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = bench.context(spelling_model, kept=spelling_model.parent / "set-ups")
    sae = bench.sae(context, random_wide_sae())
    ours = measured("absorption", CONFIG, context, sae)
    # By itself: its own run_eval, in folders of this test, on a sorted vocabulary, the probes being there.
    for module in (common, feature_absorption):
        monkeypatch.setattr(module, "get_alpha_tokens", lambda tokenizer: sorted(get_alpha_tokens(tokenizer)))
    loader = SimpleNamespace(from_pretrained_no_processing=lambda *_, **__: context.language_model.hooked)
    monkeypatch.setattr(main, "HookedTransformer", loader)
    folders = {"probes_dir": tmp_path / "probes", "experiment_dir": tmp_path / "sparse"}
    monkeypatch.setattr(
        main, "run_k_sparse_probing_experiment", functools.partial(main.run_k_sparse_probing_experiment, **folders)
    )
    folders = {
        "probes_dir": tmp_path / "probes",
        "experiment_dir": tmp_path / "absorption",
        "sparse_probing_experiment_dir": tmp_path / "sparse",
    }
    monkeypatch.setattr(
        main, "run_feature_absortion_experiment", functools.partial(main.run_feature_absortion_experiment, **folders)
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    config = AbsorptionEvalConfig(**SETTINGS, model_name="gemma", llm_dtype="float32")
    adapted = to_sae_bench(sae.weights, sae.card, device=CPU)
    with undisturbed(seed=42):
        common.load_or_train_probe(
            context.language_model.hooked, config.prompt_template, config.prompt_token_pos, 0, tmp_path / "probes"
        )
    with undisturbed(seed=42):
        found = main.run_eval(config, [("any", adapted)], "cpu", str(tmp_path / "out"), force_rerun=True)
    (output,) = found.values()
    assert ours.metrics == output["eval_result_metrics"]["mean"]
    assert [dict(entry) for entry in output["eval_result_details"]] == ours.details["letters"]


def test_a_letter_that_a_narrower_latent_takes_over_is_found_and_the_others_are_not(
    bench: SimpleNamespace, spelling_model: Path
) -> None:
    context = bench.context(spelling_model)
    config = ONE_LATENT.model_copy(update={"random_seed": 6})
    result = measured("absorption", config, context, bench.sae(context, absorbing_sae()))
    by_letter = {entry["first_letter"]: entry for entry in result.details["letters"]}
    assert set(by_letter) == set(LETTERS)
    absorbed = by_letter.pop("a")
    # Every second word of `a`: there latent 0 is silent and latent 26 alone points along the probe.
    words = pandas.read_csv(next(context.kept.folder.rglob("test_df.csv")), keep_default_na=False)["token"]
    second = [LETTERS.index(word[1]) % 2 for word in words if len(word) == 3 and word[0] == "a"]
    assert 0 < sum(second) < len(second)
    assert (absorbed["num_full_absorption"], absorbed["num_probe_true_positives"]) == (sum(second), len(second))
    assert {entry["full_absorption_rate"] for entry in by_letter.values()} == {0.0}
    assert result.metrics["mean_full_absorption_score"] == pytest.approx(absorbed["full_absorption_rate"] / 26)
    # One letter of 26 has a rate: its error over letters is rate / 26.
    assert result.standard_errors["mean_full_absorption_score"] == pytest.approx(absorbed["full_absorption_rate"] / 26)
    assert result.basis["letters"] == 26


def test_a_result_depends_neither_on_whether_probes_were_there_nor_on_which_sae_was_first(
    bench: SimpleNamespace, spelling_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = bench.context(spelling_model)
    first = bench.sae(context, absorbing_sae(), "first")
    second = bench.sae(context, random_wide_sae(), "second")
    alone = measured("absorption", CONFIG, context, first)
    (folder,) = (path for path in context.kept.folder.iterdir())
    assert not list(folder.rglob("*.dat"))
    monkeypatch.setattr("sae_bench.evals.absorption.common.train_and_save_probes", lambda *_: pytest.fail("again"))
    random.random()
    np.random.rand()
    measured("absorption", CONFIG, context, second)
    again = measured("absorption", CONFIG, context, first)
    assert (again.metrics, again.standard_errors, again.details) == (
        alone.metrics,
        alone.standard_errors,
        alone.details,
    )


def test_a_bfloat16_language_model_is_measured_with_a_float32_sae(bench: SimpleNamespace, spelling_model: Path) -> None:
    context = bench.context(spelling_model, kept=spelling_model.parent / "set-ups", compute_dtype="bfloat16")
    result = measured("absorption", ONE_LATENT, context, bench.sae(context, absorbing_sae()))
    assert 0.0 < result.metrics["mean_full_absorption_score"] < 0.1


def test_a_dead_sae_is_said_to_have_nothing_to_absorb(bench: SimpleNamespace, spelling_model: Path) -> None:
    context = bench.context(spelling_model, kept=spelling_model.parent / "set-ups")
    wide = random_wide_sae()
    dead = SAEWeights(wide.W_enc, torch.full((96,), -1e4), wide.W_dec, wide.b_dec)
    result = measured("absorption", CONFIG, context, bench.sae(context, dead))
    assert result.metrics["mean_full_absorption_score"] == 0.0
    assert result.remarks == ("No latent fires on any of the words, so nothing can be absorbed: 0 is no merit.",)


def test_a_model_that_cannot_spell_is_not_measurable_and_the_probes_are_kept(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    words = [f"{letter}{second}x" for letter in LETTERS for second in LETTERS[:20]]
    vectors = {word: torch.randn(60, generator=generator).tolist() for word in words}
    fillers = [*LETTERS.upper(), "has", "the", "first", "letter", " ", ":", "\n"]
    context = bench.context(write_model(tmp_path / "random", vectors, fillers=fillers))
    bench.sae(context, random_wide_sae())
    for _ in range(2):
        with pytest.raises(
            NotMeasurable, match=r"not measurable at blocks.0.hook_resid_post: \d+ letters reach a probe"
        ):
            BENCHMARK.prepare(CONFIG, context)
        monkeypatch.setattr("sae_bench.evals.absorption.common.train_and_save_probes", lambda *_: pytest.fail("again"))


def test_a_letter_without_test_words_does_not_count_and_one_without_words_to_train_on_rules_all_out(
    bench: SimpleNamespace, tmp_path: Path
) -> None:
    few_x = [(letter, number) for letter in LETTERS for number in range(20) if letter != "x" or number == 0]
    words = {f"{letter}{LETTERS[number]}x": letter_vector(letter, number=number) for letter, number in few_x}
    fillers = [*LETTERS.upper().replace("X", ""), "has", "the", "first", "letter", " ", ":", "\n"]
    context = bench.context(write_model(tmp_path / "few", words, fillers=fillers))
    sae = bench.sae(context, random_wide_sae())

    def outcome(seed: int) -> str:
        try:
            result = measured("absorption", CONFIG.model_copy(update={"random_seed": seed}), context, sae)
        except NotMeasurable as error:
            return error.why.reason
        return "".join(entry["first_letter"] for entry in result.details["letters"])

    # The only word with x goes to one side or the other; in one of five draws to the test, and then it trains no probe.
    assert outcome(0).startswith("No word to train on begins with x;")
    assert len(outcome(1)) >= 20
    assert "x" not in outcome(1)


def test_a_tokenizer_without_words_is_not_measurable(bench: SimpleNamespace, tmp_path: Path) -> None:
    context = bench.context(write_model(tmp_path / "mute", {"cat": [1.0]}, fillers=[" ", ":"]))
    with pytest.raises(NotMeasurable, match="The tokenizer has 1 tokens that are words; letters without any: a, b, d"):
        BENCHMARK.prepare(CONFIG, context)


def test_a_model_or_saes_that_are_too_small_are_not_run_with_the_sizes_and_the_settings(
    bench: SimpleNamespace, spelling_model: Path
) -> None:
    context: BenchmarkContext = bench.context(spelling_model, kept=spelling_model.parent / "set-ups")
    sae = bench.sae(context, absorbing_sae())
    small = BENCHMARK.not_run(CONFIG.model_copy(update={"min_model_parameters": 10**9}), context)
    assert small is not None
    assert "parameters; absorption means something from 1,000,000,000 on" in small.reason
    narrow = CONFIG.model_copy(update={"min_latents": 16384})
    few = BENCHMARK.not_run(narrow, context)
    assert few is not None
    assert few.reason.startswith("The widest SAE has 32 latents; absorption means something from 16,384 on")
    # Beside a wide one, a narrow one is measured, with a remark.
    context.cards["wide"] = sae.card.model_copy(update={"d_sae": 16384})
    assert measured("absorption", narrow, context, sae).remarks == (
        "This SAE has 32 latents; absorption means something from 16,384 on.",
    )
