"""The `autointerp` benchmark: sae-bench `autointerp` on held-out text. A judge explains latents and predicts with it.

The language model runs once per sweep (evaluate/memo.py), on text that the cache holds out. Latents are taken in one
random order of their numbers, the same for all SAEs of a width; those that fire too seldom are passed over, by
sae-bench's rule. So variants are compared on nearly the same numbers, which began training with the same weights.

A score needs its floor: sae-bench shows the judge 14 examples of which it labels about 4 active, so that a judge who
always answers "None" scores about 0.71. `balanced_score`, the mean of recall and specificity, is a half for every judge
who always gives one answer. And sae-bench labels its random examples inactive though a dense latent fires in many:
`true_label_score` has the same predictions against what the latent really does there.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, JsonValue, model_validator

from compute.code_version import CodeVersion
from evaluate.benchmarks.benchmark import Benchmark, EvaluatedSAE, Measurement, NotRun
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.judge.settings import JudgeSettings, LexicalJudge, OpenAIJudge, identity
from store.record import Record, digest

if TYPE_CHECKING:
    from evaluate.explained_latents import ExplainedLatent
    from evaluate.judge.budget import Budget
    from evaluate.judge.judge import Judge
    from evaluate.judge.limits import Usage
    from evaluate.memo import LanguageModelMemo

PositiveCount = Annotated[int, Field(gt=0)]
LONGEST_TEXT: Final = 300
"""Characters of an explanation or answer in a result: a judge's words are data of unknown length."""
QUESTION_CHARACTERS: Final = 1800
"""Of sae-bench's instructions in one question, for the estimate of cost."""


class AutoInterpConfig(Record):
    """Who judges, which latents, and how many examples. Names and defaults are sae-bench's, if not said otherwise."""

    judge: JudgeSettings
    num_latents: PositiveCount
    """sae-bench's n_latents; 1000 there."""
    num_sequences: PositiveCount
    """Held-out sequences from which examples are taken; sae-bench's total_tokens is 2,000,000."""
    batch_sequences: PositiveCount
    """Sequences per forward pass."""
    dead_latent_threshold: Annotated[int, Field(ge=0)] = 15
    """Latents that fire on no more tokens than this are passed over."""
    buffer: PositiveCount = 10
    """Tokens on either side of an example's middle."""
    act_threshold_frac: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01
    """Share of its highest activation from which a latent counts as active."""
    max_tokens_in_explanation: PositiveCount = 30
    use_demos_in_explanation: bool = True
    n_top_ex_for_generation: PositiveCount = 10
    n_iw_sampled_ex_for_generation: PositiveCount = 5
    n_top_ex_for_scoring: PositiveCount = 2
    n_random_ex_for_scoring: PositiveCount = 10
    n_iw_sampled_ex_for_scoring: PositiveCount = 2
    random_seed: int = 42
    """Of the examples and of the order in which latents are taken."""

    @model_validator(mode="after")
    def _enough_text(self) -> Self:
        wanted = self.n_top_ex_for_generation + self.n_top_ex_for_scoring
        if self.num_sequences < wanted:
            raise ValueError(
                f"expected num_sequences of at least {wanted}, since a latent's {wanted} top examples may all come "
                f"from different sequences, got {self.num_sequences}. Raise it"
            )
        return self


@dataclass(frozen=True)
class AutoInterpSetUp:
    """What all SAEs share."""

    memos: "dict[str, LanguageModelMemo]"
    """By hook."""


def num_held_out_sequences(config: AutoInterpConfig) -> int:
    """Sequences that are read."""
    return config.num_sequences


def num_steps(config: AutoInterpConfig) -> int:
    """Two for each latent: its examples are gathered, and it is judged."""
    return 2 * config.num_latents


def depends_on(config: AutoInterpConfig) -> dict[str, JsonValue]:
    """Who judges."""
    return {"judge": identity(config.judge)}


def not_run(config: AutoInterpConfig, context: BenchmarkContext) -> NotRun | None:
    """A judge behind an address needs one."""
    del context
    if isinstance(config.judge, LexicalJudge):
        return None
    from evaluate.judge.client import access_from_environment

    if access_from_environment() is not None:
        return None
    return NotRun(
        f"The judge {config.judge.model} needs a key or an address, and neither OPENAI_API_KEY nor OPENAI_BASE_URL is "
        "set.",
        "Set them in the environment, or choose the offline baseline: judge: {kind: lexical}.",
    )


def prepare(config: AutoInterpConfig, context: BenchmarkContext) -> AutoInterpSetUp:
    """Runs the language model once over the text, for each hook of the SAEs; says what a judge may cost at most."""
    from evaluate.memo import LanguageModelMemo, keep_activations

    spec = context.manifest.spec
    if spec.context_length <= 2 * config.buffer:
        raise ValueError(
            f"expected sequences longer than twice the buffer of {config.buffer} tokens, got {spec.context_length}. "
            "Lower evaluate.autointerp.buffer"
        )
    tokens = context.held_out[: config.num_sequences]
    dtype = getattr(torch, spec.compute_dtype)
    tokenizer = context.language_model.tokenizer()
    memos = {}
    for hook in context.hooks:
        inputs: dict[str, JsonValue] = {
            **BENCHMARK.version.identity("version"),
            "language_model": spec.model.identifying(),
            "compute_dtype": spec.compute_dtype,
            "device": context.device.type,
            "hook": hook,
            "tokens": digest([list(tokens.shape), tokens.tobytes().hex()]),
            "batch_sequences": config.batch_sequences,
        }
        with context.kept.open("autointerp", inputs) as kept:
            if not kept.is_complete:
                keep_activations(
                    kept.path,
                    context.language_model.hooked,
                    tokens,
                    hook=hook,
                    dtype=dtype,
                    d_model=spec.model.d_model,
                    batch_sequences=config.batch_sequences,
                    device=context.device,
                    progress=context.progress,
                )
                kept.finish()
            memos[hook] = LanguageModelMemo(
                kept.path, tokens, hook=hook, dtype=dtype, tokenizer=tokenizer, device=context.device
            )
    if isinstance(config.judge, OpenAIJudge):
        _tell_cost(config, context, tokenizer)
    return AutoInterpSetUp(memos)


def expected_usage(config: AutoInterpConfig, *, num_saes: int, characters_per_token: float) -> "Usage":
    """About what a sweep asks of a judge at most: two questions for each latent, and answers of full length."""
    from evaluate.judge.budget import estimated_tokens
    from evaluate.judge.limits import Usage

    explaining = config.n_top_ex_for_generation + config.n_iw_sampled_ex_for_generation
    scoring = config.n_top_ex_for_scoring + config.n_iw_sampled_ex_for_scoring + config.n_random_ex_for_scoring
    per_example = math.ceil((2 * config.buffer + 1) * characters_per_token) + len("10. \n")
    latents = num_saes * config.num_latents
    characters = 2 * QUESTION_CHARACTERS + (explaining + scoring) * per_example
    return Usage(
        requests=2 * latents,
        input_tokens=latents * estimated_tokens(characters),
        output_tokens=latents * (config.max_tokens_in_explanation + 2 * scoring + 5),
    )


def _tell_cost(config: AutoInterpConfig, context: BenchmarkContext, tokenizer: Any) -> None:  # noqa: ANN401 - transformers'
    """Before the first request: about how many there will be, their tokens, and money where prices are given."""
    from evaluate.judge.limits import in_words

    assert isinstance(config.judge, OpenAIJudge)
    sample = context.held_out[:20]
    characters = sum(len(text) for text in tokenizer.batch_decode(sample.tolist(), skip_special_tokens=True))
    usage = expected_usage(config, num_saes=len(context.cards), characters_per_token=characters / sample.size)
    budget = _budget(config.judge, context)
    limits, spent = budget.limits, budget.spent()
    lines = [
        f"evaluate autointerp: {len(context.cards)} SAEs x {config.num_latents:,} latents ask {config.judge.model} at "
        f"most {in_words(usage, limits)}; what was asked before is not asked again"
    ]
    if spent.requests:
        lines.append(f"evaluate autointerp: so far {config.judge.model} was asked {in_words(spent, limits)}")
    if limit := limits.exceeded_by(spent + usage):
        lines.append(f"evaluate autointerp: the judge may stop before the end, at {limit}")
    print("\n".join(lines), file=sys.stderr)


def _folder(judge: OpenAIJudge, context: BenchmarkContext) -> Path:
    """Replies and ledger of this model: beside what is kept for a sweep, since that may be removed to make room."""
    return context.kept.folder.with_name(".judge") / digest(judge.model)[:16]


def _budget(judge: OpenAIJudge, context: BenchmarkContext) -> "Budget":
    from evaluate.judge.budget import Budget

    return Budget(context.judge_limits, _folder(judge, context) / "spent.jsonl")


def _judge(config: AutoInterpConfig, context: BenchmarkContext) -> "Judge":
    if isinstance(config.judge, LexicalJudge):
        from evaluate.judge.lexical import LexicalBaseline

        return LexicalBaseline()
    from evaluate.judge.client import ServedJudge, access_from_environment

    access = access_from_environment()
    if access is None:
        raise ValueError(
            "expected OPENAI_API_KEY or OPENAI_BASE_URL in the environment of this process, found neither. Set them "
            "where the workers are started"
        )
    folder = _folder(config.judge, context)
    return ServedJudge(config.judge, access, replies=folder, budget=_budget(config.judge, context))


def choose_latents(
    firing_share: NDArray[np.floating[Any]], *, num_tokens: int, num_latents: int, threshold: int, seed: int
) -> list[int]:
    """The first `num_latents` of a random order of all numbers that fire on more than `threshold` of the tokens.

    The order depends on the width and `seed` alone. `firing_share` (F) is sae-bench's: of tokens that are not special;
    its rule for dead latents multiplies it by all `num_tokens`, and so do we.
    """
    order = np.random.default_rng(seed).permutation(len(firing_share))
    alive = firing_share[order] * num_tokens > threshold
    return [int(latent) for latent in order[alive][:num_latents]]


def measure(
    sae: EvaluatedSAE, config: AutoInterpConfig, context: BenchmarkContext, shared: AutoInterpSetUp
) -> Measurement:
    """Has latents of the SAE explained and predicted. Scores are means over latents whose answers could be read.

    Metrics: autointerp_score, autointerp_std_dev (sae-bench's names); floor_always_none and floor_always_all, what a
    judge with this one answer scores on the same examples; score_above_floor, over the higher of them; recall,
    specificity and their mean balanced_score on sae-bench's labels; true_label_score and true_label_floor, with random
    examples labelled by what the latent does; firing_random_examples, the share of random examples where it fires;
    numbers of latents.
    """
    from sae_bench.evals.autointerp.eval_config import AutoInterpEvalConfig

    from evaluate.explained_latents import explain_latents, firing_share
    from evaluate.sae_bench import to_sae_bench

    adapted = to_sae_bench(sae.weights, sae.card, device=context.device)
    memo = shared.memos[sae.card.hook]
    tokens = torch.from_numpy(context.held_out[: config.num_sequences].astype(np.int64)).to(context.device)
    share = firing_share(adapted, memo, tokens, batch_sequences=config.batch_sequences).cpu().numpy()
    latents = choose_latents(
        share,
        num_tokens=tokens.numel(),
        num_latents=config.num_latents,
        threshold=config.dead_latent_threshold,
        seed=config.random_seed,
    )
    if not latents:
        return _nothing_to_explain(config, len(share))
    examples = config.model_dump(
        include={name for name in AutoInterpConfig.model_fields if name.startswith("n_")}
        | {"random_seed", "dead_latent_threshold", "buffer", "act_threshold_frac"}
        | {"max_tokens_in_explanation", "use_demos_in_explanation"}
    )
    found = explain_latents(
        AutoInterpEvalConfig(
            model_name=context.manifest.spec.model.name,
            n_latents=None,
            override_latents=latents,
            total_tokens=tokens.numel(),
            llm_context_size=tokens.shape[1],
            llm_batch_size=config.batch_sequences,
            llm_dtype=context.manifest.spec.compute_dtype,
            **examples,
        ),
        adapted,
        memo,
        tokens,
        judge=_judge(config, context),
        progress=context.progress,
    )
    if found.latents and not found.scores:
        answer = next(iter(found.latents.values())).answer
        raise ValueError(
            f'expected answers of the judge such as "1, 4" or "None", got none that could be read for '
            f"{len(found.latents)} latents, such as {answer[:80]!r}. Choose another judge in evaluate.autointerp.judge"
        )
    if not found.scores:
        return _nothing_to_explain(config, len(share))
    return _summary(config, latents, found.latents, found.scores, d_sae=len(share))


def _summary(
    config: AutoInterpConfig,
    chosen: list[int],
    latents: "dict[int, ExplainedLatent]",
    scores: dict[int, float],
    *,
    d_sae: int,
) -> Measurement:
    """The measurement of an SAE with at least one scored latent."""
    per_latent: dict[str, list[float]] = {}
    for latent, score in scores.items():
        for name, value in _of_latent(score, latents[latent]).items():
            per_latent.setdefault(name, []).append(value)
    means = {name: fmean(values) for name, values in per_latent.items()}
    errors = {
        name: stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        for name, values in per_latent.items()
        if len(values) > 1
    }
    floor = max("floor_always_none", "floor_always_all", key=lambda name: means[name])
    above = [score - value for score, value in zip(per_latent["autointerp_score"], per_latent[floor], strict=True)]
    true_floor = max(means.pop("true_always_none"), means.pop("true_always_all"))
    for name in ("true_always_none", "true_always_all", "firing_random_examples"):
        errors.pop(name, None)
    if len(above) > 1:
        errors["score_above_floor"] = stdev(above) / math.sqrt(len(above))
    unread = [latent for latent in latents if latent not in scores]
    metrics = {
        **means,
        "autointerp_std_dev": stdev(per_latent["autointerp_score"]) if len(scores) > 1 else 0.0,
        "score_above_floor": fmean(above),
        "true_label_floor": true_floor,
        "num_latents_chosen": float(len(chosen)),
        "num_latents_scored": float(len(scores)),
        "num_latents_unreadable": float(len(unread)),
        "num_latents_without_examples": float(len(chosen) - len(latents)),
    }
    judged = [latents[latent] for latent in scores]
    return Measurement(
        metrics=metrics,
        basis={
            "latents": len(scores),
            "latents_chosen": len(chosen),
            "examples": sum(len(latent.examples) for latent in judged),
            "sequences": config.num_sequences,
        },
        standard_errors=errors,
        remarks=_remarks(config, metrics, errors, judged, d_sae=d_sae),
        details={"judge": identity(config.judge), "latents": _details(latents, scores), "chosen": list(chosen)},
    )


def _of_latent(score: float, latent: "ExplainedLatent") -> dict[str, float]:
    """Every figure of one latent; a mean over latents is a metric."""
    assert latent.predictions is not None
    examples = latent.examples
    predicted = [number in latent.predictions for number in range(1, len(examples) + 1)]
    labels = [example.labelled_active for example in examples]
    fires = [example.fires for example in examples]
    at_random = [example.fires for example in examples if example.is_random]
    return {
        "autointerp_score": score,
        "floor_always_none": fmean(not label for label in labels),
        "floor_always_all": fmean(labels),
        "recall": (recall := _share_right(predicted, labels, of=True)),
        "specificity": (specificity := _share_right(predicted, labels, of=False)),
        "balanced_score": (recall + specificity) / 2.0,
        "true_label_score": fmean(guess == label for guess, label in zip(predicted, fires, strict=True)),
        "true_always_none": fmean(not label for label in fires),
        "true_always_all": fmean(fires),
        "firing_random_examples": fmean(at_random) if at_random else 0.0,
    }


def _share_right(predicted: list[bool], labels: list[bool], *, of: bool) -> float:
    """The share of examples labelled `of` that are predicted to be; a half where there are none."""
    right = [guess == label for guess, label in zip(predicted, labels, strict=True) if label == of]
    return fmean(right) if right else 0.5


def _details(latents: "dict[int, ExplainedLatent]", scores: dict[int, float]) -> dict[str, JsonValue]:
    """By latent: explanation, score, predictions and correct numbers; sae-bench's names, its logs left out."""
    found: dict[str, JsonValue] = {}
    for latent, judged in latents.items():
        entry: dict[str, JsonValue] = {"explanation": judged.explanation[:LONGEST_TEXT]}
        if judged.predictions is None:
            entry["unreadable_answer"] = judged.answer[:LONGEST_TEXT]
        else:
            entry |= {
                "score": round(scores[latent], 4),
                "predictions": list(judged.predictions),
                "correct seqs": [i for i, example in enumerate(judged.examples, start=1) if example.labelled_active],
                "fires in": [i for i, example in enumerate(judged.examples, start=1) if example.fires],
            }
        found[str(latent)] = entry
    return found


def _remarks(
    config: AutoInterpConfig,
    metrics: dict[str, float],
    errors: dict[str, float],
    judged: "list[ExplainedLatent]",
    *,
    d_sae: int,
) -> tuple[str, ...]:
    """What a reader of the score has to know."""
    remarks = []
    if isinstance(config.judge, LexicalJudge):
        remarks.append(_LEXICAL)
    if not any(latent.predictions for latent in judged):
        remarks.append("The judge takes no example of any latent for active: its score is the floor and says nothing.")
    elif all(len(set(latent.predictions or ())) >= len(latent.examples) for latent in judged):
        remarks.append("The judge takes every example of every latent for active: its score is the floor, no more.")
    elif metrics["balanced_score"] - 0.5 < 2.0 * errors.get("balanced_score", 0.0):
        remarks.append("The judge's predictions are not surely better than chance, within two standard errors.")
    elif metrics["score_above_floor"] < 2.0 * errors.get("score_above_floor", 0.0):
        remarks.append(
            "autointerp_score is not surely above that of a judge who always gives one answer, though the predictions "
            "are better than chance: balanced_score says by how much."
        )
    if metrics["firing_random_examples"] > 0.1:
        remarks.append(
            f"Latents fire in {metrics['firing_random_examples']:.0%} of the random examples, all of which sae-bench "
            "labels inactive: true_label_score counts them as they are."
        )
    if unreadable := int(metrics["num_latents_unreadable"]):
        remarks.append(f"{unreadable:,} latents are left out, because the judge's answers could not be read.")
    if len(judged) < config.num_latents:
        remarks.append(
            f"{len(judged):,} latents are scored, of {config.num_latents:,} that were asked for: of {d_sae:,} latents "
            f"{int(metrics['num_latents_chosen']):,} fire often enough to be chosen."
        )
    return tuple(remarks)


_LEXICAL: Final = (
    "Judged by the lexical baseline, which looks for words and is no language model: compare its scores with each "
    "other, not with published ones."
)


def _nothing_to_explain(config: AutoInterpConfig, d_sae: int) -> Measurement:
    """Of an SAE whose latents fire too seldom for examples: no latent can be explained, which is the lowest score."""
    remarks = [_LEXICAL] if isinstance(config.judge, LexicalJudge) else []
    remarks.append(
        f"None of the {d_sae:,} latents fires often enough to be explained: zeros stand for scores that do not exist."
    )
    return Measurement(
        metrics=dict.fromkeys(BENCHMARK.metrics, 0.0),
        basis={"latents": 0, "latents_chosen": 0, "examples": 0, "sequences": config.num_sequences},
        remarks=tuple(remarks),
        details={"judge": identity(config.judge), "latents": {}, "chosen": []},
    )


BENCHMARK = Benchmark(
    name="autointerp",
    config=AutoInterpConfig,
    needs=frozenset({"language_model", "held_out_tokens", "judge"}),
    version=CodeVersion(
        number=1,
        files=(
            "evaluate/benchmarks/autointerp.py",
            "evaluate/benchmarks/benchmark.py",
            "evaluate/benchmarks/context.py",
            "evaluate/explained_latents.py",
            "evaluate/judge/cache.py",
            "evaluate/judge/client.py",
            "evaluate/judge/judge.py",
            "evaluate/judge/lexical.py",
            "evaluate/judge/settings.py",
            "evaluate/loaded_model.py",
            "evaluate/memo.py",
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
        code_sha256="62e851eb73eff81c3543de77f98cb9c2f3cd77d3b26a52ab91fd4e91063ed89e",
    ),
    metrics={
        "autointerp_score": "higher",
        "autointerp_std_dev": "neither",
        "floor_always_none": "neither",
        "floor_always_all": "neither",
        "score_above_floor": "higher",
        "recall": "higher",
        "specificity": "higher",
        "balanced_score": "higher",
        "true_label_score": "higher",
        "true_label_floor": "neither",
        "firing_random_examples": "neither",
        "num_latents_chosen": "neither",
        "num_latents_scored": "neither",
        "num_latents_unreadable": "lower",
        "num_latents_without_examples": "neither",
    },
    headlines=("autointerp_score", "balanced_score"),
    floors={"autointerp_score": "floor_always_none", "true_label_score": "true_label_floor"},
    measures="Whether a judge that is given an explanation of a latent, made from texts where it fires, can tell in "
    "which other texts it fires (sae-bench autointerp).",
    prepare=prepare,
    measure=measure,
    not_run=not_run,
    depends_on=depends_on,
    num_held_out_sequences=num_held_out_sequences,
    num_steps=num_steps,
)
