"""The `absorption` benchmark of sae-bench: latents for a first letter that stay silent where a narrower one fires.

sae-bench's inner functions are called in the order of its `run_eval`, which would load its own language model, write
into three folders of its own and, for a model that cannot spell, leave the loop over all SAEs. Two things differ:

* The vocabulary, which sae-bench takes in an order that changes from call to call, is sorted; and its `random_seed`,
  which it never uses, is set before the probes and before each SAE. So the same SAE gives the same numbers.
* Letters count by the probe's F1 on the activations as they are kept, once for all SAEs.

The probe is a pickle of torch's; it is made here, kept with its digest, and checked against it before it is loaded.
"""

import contextlib
import random
import statistics
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, JsonValue

from compute.code_version import CodeVersion
from evaluate.benchmarks.benchmark import Benchmark, EvaluatedSAE, Measurement, NotMeasurable, NotRun
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.jackknife import as_arrays, standard_errors, without_one_task
from store.record import Record

PositiveCount = Annotated[int, Field(gt=0)]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
EXAMPLES = 10
"""Words in a prompt before the one that is asked about; words of the smaller of the two sets must be more."""


class AbsorptionConfig(Record):
    """How first letters are probed. Names and meanings are sae-bench's, but for the last two."""

    random_seed: int
    f1_jump_threshold: float
    """Rise of F1 from k - 1 to k latents from which k of them are taken to share the letter."""
    max_k_value: PositiveCount
    prompt_template: str
    prompt_token_pos: Annotated[int, Field(lt=0)]
    """Where the word stands in the template, from its end."""
    llm_batch_size: PositiveCount
    k_sparse_probe_l1_decay: Annotated[float, Field(ge=0.0)]
    k_sparse_probe_batch_size: PositiveCount
    k_sparse_probe_num_epochs: PositiveCount
    min_GT_probe_f1: Annotated[float, Field(ge=0.0, lt=1.0)]
    """A letter counts when the probe on the language model's own activations has more than this."""
    min_feats_for_eval: Annotated[int, Field(ge=2, le=26)]
    """Letters that have to count, for absorption to be measurable at all."""
    eval_k_sparse_probe_batch_size: PositiveCount
    precalc_k_sparse_probe_sae_acts: bool
    min_model_parameters: Annotated[int, Field(ge=0)]
    """Of the language model; sae-bench advises a thousand million."""
    min_latents: Annotated[int, Field(ge=0)]
    """Of the widest SAE; sae-bench advises 16k."""


@dataclass(frozen=True)
class AbsorptionSetUp:
    """What all SAEs share, by hook."""

    probes: dict[str, Path]
    """Probe, prompts and activations, where sae-bench looks for them."""
    letters: dict[str, tuple[str, ...]]
    """Letters that count."""


def not_run(config: AbsorptionConfig, context: BenchmarkContext) -> NotRun | None:
    """Why absorption cannot mean anything here."""
    from evaluate.meaningful import model_too_small, too_few_latents
    from language_model.hooks import parse_hook

    others = [hook for hook in context.hooks if parse_hook(hook).site != "resid_post"]
    if others:
        return NotRun(
            f"sae-bench reads absorption behind a layer alone (blocks.N.hook_resid_post), and SAEs are at {others[0]}.",
            "Train SAEs at blocks.N.hook_resid_post (train.hook).",
        )
    too_small = model_too_small("absorption", context, least=config.min_model_parameters)
    return too_small or too_few_latents("absorption", context, least=config.min_latents)


def prepare(config: AbsorptionConfig, context: BenchmarkContext) -> AbsorptionSetUp:
    """Trains the probes of all letters on the language model's activations, once for each hook."""
    _check_vocabulary(context)
    probes, letters = {}, {}
    for hook in context.hooks:
        inputs: dict[str, JsonValue] = {
            **BENCHMARK.version.identity("version"),
            "language_model": context.manifest.spec.model.identifying(),
            "compute_dtype": context.manifest.spec.compute_dtype,
            "device": context.device.type,
            "hook": hook,
            "random_seed": config.random_seed,
            "prompt_template": config.prompt_template,
            "prompt_token_pos": config.prompt_token_pos,
        }
        with context.kept.open("absorption", inputs) as kept:
            if not kept.is_complete:
                _train_probes(kept.path, hook, config, context)
                kept.finish()
            probes[hook] = kept.path
        letters[hook] = _letters(kept.path, hook, config, context)
    return AbsorptionSetUp(probes, letters)


def _check_vocabulary(context: BenchmarkContext) -> None:
    from sae_bench.evals.absorption.vocab import get_alpha_tokens

    words = get_alpha_tokens(context.language_model.tokenizer())
    firsts = Counter(word.strip()[0].lower() for word in words)
    lacking = [letter for letter in LETTERS if not firsts[letter]]
    if lacking or len(words) < 5 * (EXAMPLES + 1):
        raise NotMeasurable(
            f"The tokenizer has {len(words)} tokens that are words; letters without any: {', '.join(lacking) or '-'}.",
            "Absorption needs a tokenizer with words for every letter of the English alphabet.",
        )


def _train_probes(folder: Path, hook: str, config: AbsorptionConfig, context: BenchmarkContext) -> None:
    from sae_bench.evals.absorption.common import load_or_train_probe

    from language_model.hooks import parse_hook

    with _repeatable(config):
        load_or_train_probe(
            model=context.language_model.hooked,
            base_template=config.prompt_template,
            pos_idx=config.prompt_token_pos,
            layer=parse_hook(hook).layer,
            probes_dir=folder,
            device=str(context.device),
        )
    for activations in folder.rglob("*_act_tensor.dat"):
        activations.unlink()  # the same numbers are in data.npz


def _letters(folder: Path, hook: str, config: AbsorptionConfig, context: BenchmarkContext) -> tuple[str, ...]:
    """Letters whose probe is good enough; NotMeasurable where there are too few."""
    import torch
    from sae_bench.evals.absorption.common import load_probe, load_probe_data_split
    from sklearn.metrics import f1_score

    from language_model.hooks import parse_hook

    model, layer, device = context.language_model.hooked, parse_hook(hook).layer, str(context.device)
    probe = load_probe(model.cfg.model_name, layer, folder, device=device)
    activations, labelled = load_probe_data_split(model, layer, "test", folder, device=device)
    of_training = {label for _, label in load_probe_data_split(model, layer, "train", folder, device="cpu")[1]}
    labels = np.array([label for _, label in labelled])
    with torch.no_grad():
        says = (probe(activations) > 0.0).cpu().numpy()
    unseen = [name for number, name in enumerate(LETTERS) if number not in of_training]
    if unseen:
        raise NotMeasurable(
            f"No word to train on begins with {', '.join(unseen)}; sae-bench trains all letters' probes at once.",
            "Try another evaluate.absorption.random_seed, or a language model with a larger vocabulary.",
        )
    scores = {  # 0 for a letter without test words: it does not count
        name: float(f1_score(labels == number, says[:, number], zero_division=0.0))
        for number, name in enumerate(LETTERS)
    }
    good = tuple(name for name, score in scores.items() if score > config.min_GT_probe_f1)
    if len(good) < config.min_feats_for_eval:
        best = max(scores, key=lambda name: scores[name])
        raise NotMeasurable(
            f"Absorption is not measurable at {hook}: {len(good)} letters reach a probe F1 above "
            f"{config.min_GT_probe_f1:g}, {config.min_feats_for_eval} have to (the best, {best}: {scores[best]:.2f}).",
            "The language model does not spell well enough there: take a larger one or another layer.",
        )
    return good


def measure(
    sae: EvaluatedSAE, config: AbsorptionConfig, context: BenchmarkContext, shared: AbsorptionSetUp
) -> Measurement:
    """Compares the latents that tell a letter with the probe on the language model's activations, word by word.

    Metrics, means over the letters that count: mean_absorption_fraction_score (what part of the probe's direction other
    latents carry), mean_full_absorption_score (words on which the letter's latents are silent and one other carries
    it), mean_num_split_features (latents that share a letter), and the standard deviation of each over letters.
    """
    import pandas
    from sae_bench.evals.absorption.feature_absorption import run_feature_absortion_experiment
    from sae_bench.evals.absorption.k_sparse_probing import run_k_sparse_probing_experiment
    from sae_bench.evals.absorption.main import _aggregate_results_df

    from evaluate.meaningful import narrow_remark
    from evaluate.sae_bench import to_sae_bench
    from language_model.hooks import parse_hook

    if sae.card.d_sae < max(EXAMPLES, config.max_k_value):
        raise NotMeasurable(
            f"It has {sae.card.d_sae} latents, and absorption looks at {max(EXAMPLES, config.max_k_value)}.",
            "Train it with more latents (d_sae).",
        )
    adapted = to_sae_bench(sae.weights, sae.card, device=context.device)
    letters = shared.letters[sae.card.hook]
    model = _Float32Activations(context.language_model.hooked)
    with tempfile.TemporaryDirectory() as scratch, _repeatable(config):
        common: dict[str, Any] = {
            "model": model,
            "sae": adapted,
            "layer": parse_hook(sae.card.hook).layer,
            "sae_name": "sae",
            "max_k_value": config.max_k_value,
            "prompt_template": config.prompt_template,
            "prompt_token_pos": config.prompt_token_pos,
            "device": str(context.device),
            "probes_dir": shared.probes[sae.card.hook],
        }
        sparse = Path(scratch) / "k_sparse_probing"
        run_k_sparse_probing_experiment(
            **common,
            experiment_dir=sparse,
            f1_jump_threshold=config.f1_jump_threshold,
            k_sparse_probe_l1_decay=config.k_sparse_probe_l1_decay,
            k_sparse_probe_batch_size=config.k_sparse_probe_batch_size,
            k_sparse_probe_num_epochs=config.k_sparse_probe_num_epochs,
            precalc_k_sparse_probe_sae_acts=config.precalc_k_sparse_probe_sae_acts,
            eval_batch_size=config.eval_k_sparse_probe_batch_size,
            verbose=False,
        )
        context.progress(1)
        words: pandas.DataFrame = run_feature_absortion_experiment(
            **common,
            experiment_dir=Path(scratch) / "feature_absorption",
            sparse_probing_experiment_dir=sparse,
            feature_split_f1_jump_threshold=config.f1_jump_threshold,
            batch_size=config.llm_batch_size,
        )
        context.progress(1)
    table = _aggregate_results_df(words)
    table = table[table["letter"].isin(letters)]
    fractions = [float(value) for value in table["mean_absorption_fraction"]]
    rates = [float(value) for value in table["full_absorption_rate"]]
    splits = [float(value) for value in table["num_split_feats"]]
    names = ("mean_absorption_fraction_score", "mean_full_absorption_score", "mean_num_split_features")
    left_out = without_one_task(
        [
            {
                letter: dict(zip(names, scores, strict=True))
                for letter, *scores in zip(table["letter"], fractions, rates, splits, strict=True)
            }
        ]
    )
    num_words = int(table["num_probe_true_positives"].sum())
    return Measurement(
        metrics={
            "mean_absorption_fraction_score": statistics.mean(fractions),
            "mean_full_absorption_score": statistics.mean(rates),
            "mean_num_split_features": statistics.mean(splits),
            "std_dev_absorption_fraction_score": statistics.stdev(fractions),
            "std_dev_full_absorption_score": statistics.stdev(rates),
            "std_dev_num_split_features": statistics.stdev(splits),
        },
        basis={"letters": len(fractions), "words": num_words},
        standard_errors=standard_errors(left_out),
        arrays=as_arrays(left_out),
        remarks=(*narrow_remark("absorption", sae.card.d_sae, least=config.min_latents), *_remarks(words)),
        details={"letters": _json(table), "standard_errors": "over letters, as if they were drawn at random"},
    )


def _remarks(words: Any) -> tuple[str, ...]:  # noqa: ANN401 - a data frame
    if not any(activation > 0.0 for row in words["projection_feat_acts"] for activation in row):
        return ("No latent fires on any of the words, so nothing can be absorbed: 0 is no merit.",)
    return ()


def _json(table: Any) -> JsonValue:  # noqa: ANN401 - a data frame
    return [
        {
            "first_letter": row["letter"],
            "mean_absorption_fraction": float(row["mean_absorption_fraction"]),
            "full_absorption_rate": float(row["full_absorption_rate"]),
            "num_full_absorption": int(row["num_full_absorption"]),
            "num_probe_true_positives": int(row["num_probe_true_positives"]),
            "num_split_features": int(row["num_split_feats"]),
        }
        for _, row in table.iterrows()
    ]


class _Float32Activations:
    """The language model, whose activations come in float32, exactly: sae-bench multiplies them with those of SAEs."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - a TransformerBridge
        self._model = model

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the model has
        return getattr(self._model, name)

    def run_with_cache(self, *arguments: Any, **keywords: Any) -> tuple[Any, dict[str, Any]]:  # noqa: ANN401 - passed on
        """What the model's own gives, in float32."""
        output, cache = self._model.run_with_cache(*arguments, **keywords)
        return output, {name: activations.float() for name, activations in cache.items()}


@contextlib.contextmanager
def _repeatable(config: AbsorptionConfig) -> Iterator[None]:
    """Inside, the vocabulary is sorted and everything random begins at the seed that sae-bench does not use."""
    import torch
    from sae_bench.evals.absorption import common, feature_absorption
    from sae_bench.evals.absorption.vocab import get_alpha_tokens
    from sklearn.exceptions import UndefinedMetricWarning

    def in_order(*arguments: Any, **keywords: Any) -> list[str]:  # noqa: ANN401 - passed on as they are
        return sorted(get_alpha_tokens(*arguments, **keywords))

    common.get_alpha_tokens = feature_absorption.get_alpha_tokens = in_order
    torch.manual_seed(config.random_seed)
    np.random.seed(config.random_seed)
    random.seed(config.random_seed)
    torch.set_grad_enabled(True)
    try:
        with warnings.catch_warnings():
            # Of a probe that says no to every word: its precision is 0, as sae-bench takes it.
            warnings.filterwarnings("ignore", category=UndefinedMetricWarning)
            yield
    finally:
        common.get_alpha_tokens = feature_absorption.get_alpha_tokens = get_alpha_tokens


BENCHMARK = Benchmark(
    name="absorption",
    config=AbsorptionConfig,
    needs=frozenset({"language_model"}),
    version=CodeVersion(
        number=2,
        files=(
            "evaluate/benchmarks/absorption.py",
            "evaluate/benchmarks/benchmark.py",
            "evaluate/benchmarks/context.py",
            "evaluate/jackknife.py",
            "evaluate/loaded_model.py",
            "evaluate/meaningful.py",
            "evaluate/sae_bench.py",
            "language_model/checkpoint.py",
            "language_model/families.py",
            "language_model/hooks.py",
            "language_model/load.py",
            "language_model/special_tokens.py",
            "language_model/structure.py",
            "language_model/tokenizer.py",
            "store/sae/weights.py",
        ),
        code_sha256="a3001ccde348a3d439461d8779f7405ddbfefde6b1a65d31505da18bdb4c3611",
    ),
    metrics={
        "mean_absorption_fraction_score": "lower",
        "mean_full_absorption_score": "lower",
        "mean_num_split_features": "lower",
        "std_dev_absorption_fraction_score": "neither",
        "std_dev_full_absorption_score": "neither",
        "std_dev_num_split_features": "neither",
    },
    units="letters",
    headlines=("mean_absorption_fraction_score", "mean_full_absorption_score"),
    measures="How often the latents for a word's first letter stay silent because a narrower latent fires (sae-bench "
    "absorption). Lower is better, but an SAE that is narrow or hardly trained scores low as well.",
    prepare=prepare,
    measure=measure,
    not_run=not_run,
    num_steps=lambda _: 2,
)
