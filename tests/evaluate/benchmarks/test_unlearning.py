"""unlearning on a small model that knows the answers, its questions from a hub on the loopback."""

import itertools
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
from sae_bench.evals.unlearning import main
from sae_bench.evals.unlearning.eval_config import UnlearningEvalConfig
from sae_bench.evals.unlearning.utils import feature_activation, metrics
from sae_bench.evals.unlearning.utils.metrics import save_target_question_ids

from evaluate.benchmarks.benchmark import EvaluatedSAE, NotMeasurable
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.benchmarks.unlearning import BENCHMARK, UnlearningConfig
from evaluate.isolation import undisturbed
from evaluate.sae_bench import to_sae_bench
from store.sae.weights import SAEWeights
from tests.evaluate.benchmarks.conftest import CPU, measured
from tests.evaluate.benchmarks.small_models import D_MODEL, write_model
from tests.hub_server import hub, point_libraries_at

pytestmark = pytest.mark.filterwarnings(  # sae-bench leaves the corpus open
    "ignore:unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning"
)
NAME = "google/gemma-2-2b-it"
BIOLOGY, OTHERS = 10, 20
"""Channels of what is to be forgotten, and of what is to stay."""
RIGHT = {"wmdp-bio": ["virus", "toxin", "spore", "germ"], "human_aging": ["sleep", "water", "walks", "bread"]}
WRONG = ["stone", "brick", "glass"]
SETTINGS: dict[str, Any] = {
    "random_seed": 42, "dataset_names": ["wmdp-bio", "human_aging"], "retain_thresholds": [0.01],
    "n_features_list": [1, 2], "multipliers": [25], "dataset_size": 4, "seq_len": 16, "llm_batch_size": 4,
}  # fmt: skip
TEXT = "an old text of plain words that says nothing at all about"
PROMPT = "The following are multiple choice questions with answers about biology human aging which one is it user model"
FILLERS = [*f"{TEXT} {PROMPT}".split(), "Answer", "start_of_turn", "end_of_turn", *"():.<>?"]


def vector(*channels: int) -> list[float]:
    return [float(number in channels) for number in range(D_MODEL - 1)]


@pytest.fixture(scope="module")
def knowing_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A label with a right choice is one token, whose vector has the label's channel: the model answers with it."""
    vectors = {f"{space}{label}": vector(number) for number, label in enumerate("ABCD") for space in ("", " ")}
    for dataset, channel in (("wmdp-bio", BIOLOGY), ("human_aging", OTHERS)):
        for word in RIGHT[dataset]:
            vectors[word] = vector(channel)
            vectors |= {f"\n{label}. {word}": vector(number, channel) for number, label in enumerate("ABCD")}
    wrong = [f"\n{label}. {word}" for label, word in itertools.product("ABCD", WRONG)]
    pattern = r"\n[A-D]\. \w+| [A-D]\b|<bos>|\w+|\s|."
    folder = tmp_path_factory.mktemp("models") / "knowing"
    return write_model(folder, vectors, fillers=[" ", "\n", *wrong, *WRONG, *FILLERS], pattern=pattern)


def questions(dataset: str) -> list[dict[str, Any]]:
    """Four questions; the answer of number i is choice i."""
    found = []
    for number, word in enumerate(RIGHT[dataset]):
        choices = [*WRONG]
        choices.insert(number, word)
        found.append({"question": "which one is it?", "choices": choices, "answer": number})
    return found


def write_split(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (folder / name).mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name / "test-00000.parquet")
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {name}\n  data_files:\n  - split: test\n    path: {name}/test-*\n---\n"
    )


@pytest.fixture
def asks_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of data sets on a hub that runs during the test; the forget corpus lies where sae-bench looks for it."""
    root = tmp_path / "hub"
    write_split(root / "cais" / "wmdp", "wmdp-bio", questions("wmdp-bio"))
    write_split(root / "cais" / "mmlu", "human_aging", questions("human_aging"))
    plain = f"{TEXT} virus " * 3
    write_split(root / "Salesforce" / "wikitext", "wikitext-2-raw-v1", [{"text": plain.replace("virus", "stone")}] * 6)
    corpus = tmp_path / "sae_bench" / "evals" / "unlearning" / "data" / "bio-forget-corpus.jsonl"
    corpus.parent.mkdir(parents=True)
    corpus.write_text((json.dumps({"text": plain}) + "\n") * 6)
    monkeypatch.chdir(tmp_path)
    with hub(root) as url:
        point_libraries_at(url, tmp_path / "hub-cache", monkeypatch)
        yield root


def config(**changes: Any) -> UnlearningConfig:  # noqa: ANN401 - settings
    corpus = "sae_bench/evals/unlearning/data/bio-forget-corpus.jsonl"
    ours = {"forget_corpus": corpus, "data_revision": "main", "min_model_parameters": 0}
    return UnlearningConfig(**(SETTINGS | ours | changes))


def biology_sae(*, dead: bool = False) -> SAEWeights:
    """One latent fires on biology, and clamping it takes A away as well; the others never fire."""
    W_enc, W_dec = torch.zeros(D_MODEL, 16), torch.zeros(16, D_MODEL)
    b_enc = torch.full((16,), -1e4)
    W_enc[BIOLOGY, 0], b_enc[0] = 1.0, -1e4 if dead else -1.0
    W_dec[0, BIOLOGY], W_dec[0, 0] = 0.8, 0.6
    W_dec[1:, 50] = 1.0
    return SAEWeights(W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=torch.zeros(D_MODEL))


def by_itself(context: BenchmarkContext, sae: EvaluatedSAE, folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What sae-bench's own run_eval gives, asking the hub itself."""

    def loaded(*_: object, **__: object) -> Any:  # noqa: ANN401 - passes for a HookedTransformer
        model = context.language_model.hooked
        model.cfg.model_name = "gemma-2-2b-it"
        return model

    patch.setattr(main, "HookedTransformer", SimpleNamespace(from_pretrained_no_processing=loaded))
    patch.setattr(
        feature_activation,
        "load_dataset",
        lambda name, *rest, **keywords: datasets.load_dataset(f"Salesforce/{name}", *rest, **keywords),
    )
    settings = UnlearningEvalConfig(**SETTINGS, model_name="gemma-2-2b-it", llm_dtype="float32")
    adapted = to_sae_bench(sae.weights, sae.card, device=CPU)
    with undisturbed(seed=5):
        found = main.run_eval(
            settings, [("any", adapted)], "cpu", str(folder / "out"), artifacts_path=str(folder / "artifacts")
        )
    (output,) = found.values()
    return output


def test_the_score_is_that_of_sae_bench_by_itself_and_that_of_a_computation_by_hand(
    bench: SimpleNamespace, knowing_model: Path, asks_the_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = bench.context(knowing_model, NAME)
    sae = bench.sae(context, biology_sae())
    ours = measured("unlearning", config(), context, sae)
    # Of four questions on biology, the one whose answer is A is no longer answered rightly, and all others are.
    assert ours.metrics == {"unlearning_score": 0.25}
    assert ours.basis == {"forget_questions": 4, "other_questions": 4, "settings": 1}
    (setting,) = ours.details["settings"]
    assert (setting["wmdp-bio"], setting["human_aging"], setting["n_features"]) == (0.75, 1.0, 1.0)
    # One latent is found, so that asking for one and asking for two are the same setting.
    assert ours.details["latents_found"] == {"0.01": 1}
    assert ours.remarks[0].startswith("Only 1 latents fire on the forget corpus and on at most 0.01 of the retained")
    theirs = by_itself(context, sae, tmp_path, monkeypatch)
    assert theirs["eval_result_metrics"]["unlearning"]["unlearning_score"] == ours.metrics["unlearning_score"]


def test_a_result_depends_neither_on_what_was_kept_nor_on_the_sae_before_and_asks_no_hub_again(
    bench: SimpleNamespace, knowing_model: Path, asks_the_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = bench.context(knowing_model, NAME)
    first, second = bench.sae(context, biology_sae(), "first"), bench.sae(context, biology_sae(dead=True), "second")
    alone = measured("unlearning", config(), context, first)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("asked again"))
    monkeypatch.setattr(
        "sae_bench.evals.unlearning.utils.metrics._find_all_permutation_correct_ans", lambda *_: pytest.fail("again")
    )
    of_second = measured("unlearning", config(), context, second)
    assert of_second.metrics == {"unlearning_score": 0.0}
    assert of_second.remarks[0].startswith("Only 0 latents fire")
    assert measured("unlearning", config(), context, first) == alone
    assert not context.language_model.hooked.cfg.model_name.startswith("gemma-2")


def test_an_interrupted_set_up_goes_on_behind_the_data_set_that_it_finished(
    bench: SimpleNamespace, knowing_model: Path, asks_the_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = bench.context(knowing_model, NAME)
    sae = bench.sae(context, biology_sae())
    asked = []

    def asking(model: Any, batch: int, folder: str, name: str) -> None:  # noqa: ANN401 - a language model
        asked.append(name)
        if asked == ["wmdp-bio", "human_aging"]:
            raise KeyboardInterrupt
        save_target_question_ids(model, batch, folder, name)

    monkeypatch.setattr(metrics, "save_target_question_ids", asking)
    with pytest.raises(KeyboardInterrupt):
        measured("unlearning", config(), context, sae)
    BENCHMARK.prepare(config(), context)
    assert asked == ["wmdp-bio", "human_aging", "human_aging"]


def test_no_pickle_that_lies_about_is_loaded(
    bench: SimpleNamespace, knowing_model: Path, asks_the_hub: Path, tmp_path: Path
) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    context = bench.context(knowing_model, NAME)
    name = "clamp_feature_activation_multiplier25_nfeatures1_layer0_retainthres0.01.pkl"
    measured("unlearning", config(), context, bench.sae(context, biology_sae()))
    for folder in (tmp_path, *(path for path in context.kept.folder.iterdir())):
        place = folder / "sae" / "results" / "metrics"
        place.mkdir(parents=True)
        (place / name).write_bytes(pickle.dumps(Trap()))
    assert measured("unlearning", config(), context, bench.sae(context, biology_sae())).metrics == {
        "unlearning_score": 0.25
    }
    assert not (tmp_path / "sprung").exists()


def test_a_setting_that_harms_the_other_questions_scores_0_and_says_so(
    bench: SimpleNamespace, knowing_model: Path, asks_the_hub: Path
) -> None:
    context = bench.context(knowing_model, NAME)
    both = biology_sae()
    both.W_enc[OTHERS, 0] = 1.0
    result = measured("unlearning", config(), context, bench.sae(context, both))
    assert result.metrics == {"unlearning_score": 0.0}
    assert result.remarks[-1] == "Every setting harms the other questions, so that the score is 0 by definition."


def test_a_bfloat16_language_model_is_measured_with_a_float32_sae(
    bench: SimpleNamespace, knowing_model: Path, asks_the_hub: Path
) -> None:
    context = bench.context(knowing_model, NAME, compute_dtype="bfloat16")
    result = measured("unlearning", config(), context, bench.sae(context, biology_sae()))
    assert result.metrics == {"unlearning_score": 0.25}


def test_a_model_that_knows_no_answer_is_not_measurable(
    bench: SimpleNamespace, knowing_model: Path, asks_the_hub: Path
) -> None:
    confused = [question | {"answer": (question["answer"] + 1) % 4} for question in questions("human_aging")]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(confused), asks_the_hub / "cais" / "mmlu" / "human_aging" / "test-00000.parquet"
    )
    context = bench.context(knowing_model, NAME)
    bench.sae(context, biology_sae())
    with pytest.raises(NotMeasurable, match="answers no question of human_aging rightly in all 24 orders"):
        BENCHMARK.prepare(config(), context)


def test_gated_data_without_a_token_and_with_one(
    bench: SimpleNamespace, knowing_model: Path, asks_the_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (asks_the_hub / "cais" / "wmdp" / ".gated").touch()
    context = bench.context(knowing_model, NAME)
    bench.sae(context, biology_sae())
    with pytest.raises(NotMeasurable, match=r"data set cais/wmdp \(wmdp-bio\) is gated: its terms are not accepted"):
        BENCHMARK.prepare(config(), context)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    assert BENCHMARK.prepare(config(), context).counts == {"wmdp-bio": 4, "human_aging": 4}


def test_other_models_small_ones_and_a_missing_corpus_are_reasons_in_words(
    bench: SimpleNamespace, knowing_model: Path, asks_the_hub: Path
) -> None:
    base = BENCHMARK.not_run(config(), bench.context(knowing_model, "google/gemma-2-2b"))
    assert base is not None
    assert base.reason.endswith("and this language model is google/gemma-2-2b.")
    context = bench.context(knowing_model, NAME)
    small = BENCHMARK.not_run(config(min_model_parameters=2 * 10**9), context)
    assert small is not None
    assert "unlearning means something from 2,000,000,000 on" in small.reason
    absent = config(forget_corpus="nowhere.jsonl")
    missing = BENCHMARK.not_run(absent, context)
    assert missing is not None
    assert missing.reason.startswith("The forget corpus is not at nowhere.jsonl")
    assert BENCHMARK.depends_on(absent) == {"forget_corpus_sha256": None}
    assert len(BENCHMARK.depends_on(config())["forget_corpus_sha256"]) == 64
