"""sae-bench's autointerp over chosen latents of one SAE, with a judge of ours: the one call to a judge is replaced.

sae-bench 0.6.0 labels its random examples "inactive" without looking, drops answers that it cannot read without a word,
and puts random numbers into the scoring question in the order in which the judge answers. Here the activations at
random examples are looked up as well, dropped latents are counted, and those numbers are a function of the question,
so that the same question is asked again in the next run and its kept answer is found.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

import torch
from sae_bench.evals.autointerp import main
from sae_bench.evals.autointerp.eval_config import AutoInterpEvalConfig
from sae_bench.sae_bench_utils import activation_collection
from torch import Tensor

from evaluate.judge.judge import Judge, JudgeError, Messages
from evaluate.loaded_model import hooked
from evaluate.memo import LanguageModelMemo
from store.record import digest

if TYPE_CHECKING:
    from evaluate.sae_bench import StoredSAE


DRAWS_OF_BEARTYPE = 2
"""sae-bench hands on the list of latents through beartype, which draws from Python's own generator to check one."""


@dataclass(frozen=True)
class ScoringExample:
    """One text that the judge predicts about."""

    labelled_active: bool
    """As sae-bench has it: random examples are not."""
    fires: bool
    """Whether the latent exceeds the threshold anywhere in it."""
    is_random: bool


@dataclass(frozen=True)
class ExplainedLatent:
    """What the judge made of one latent."""

    explanation: str
    predictions: tuple[int, ...] | None
    """Numbers, from 1, of the examples that it takes for active; None where its answer could not be read."""
    answer: str
    """To the scoring question."""
    examples: tuple[ScoringExample, ...]


@dataclass(frozen=True)
class ExplainedLatents:
    """All latents that had examples, and sae-bench's own scores of those whose answers could be read."""

    latents: dict[int, ExplainedLatent]
    scores: dict[int, float]


@torch.no_grad()
def firing_share(sae: "StoredSAE", memo: LanguageModelMemo, tokens: Tensor, *, batch_sequences: int) -> Tensor:
    """The share (F) of tokens, special ones left out, at which each latent is above zero; sae-bench's own."""
    with _substituted(activation_collection, tqdm=_in_silence):
        share: Tensor = activation_collection.get_feature_activation_sparsity(
            tokens, hooked(memo), sae, batch_sequences, sae.cfg.hook_layer, sae.cfg.hook_name,
            mask_bos_pad_eos_tokens=True,
        )  # fmt: skip
    return share


def explain_latents(
    config: AutoInterpEvalConfig,
    sae: "StoredSAE",
    memo: LanguageModelMemo,
    tokens: Tensor,
    *,
    judge: Judge,
    progress: Callable[[int], object],
) -> ExplainedLatents:
    """Runs sae-bench's two phases over `config.latents`; two steps of progress for each latent.

    Raises:
        JudgeError: the judge cannot go on. What it has answered it keeps.
    """
    torch.manual_seed(config.random_seed)
    # Python's own generator is of all threads: those of a Dask worker draw from it between two draws of sae-bench.
    generator = random.Random(config.random_seed)
    for _ in range(DRAWS_OF_BEARTYPE):
        generator.getrandbits(32)
    run = JudgedAutoInterp(config, sae, memo, tokens, judge=judge, generator=generator)
    steps = _Steps(progress)
    try:
        with (
            torch.no_grad(),
            _substituted(activation_collection, tqdm=_in_silence),
            _substituted(
                main,
                random=generator,
                tqdm=steps,
                print=_say_nothing,
                index_with_buffer=run.noting_places(main.index_with_buffer),
                ThreadPoolExecutor=lambda max_workers: _Threads(max_workers, on_failure=judge.stop),
            ),
        ):
            results = asyncio.run(run.run())
    finally:
        judge.stop()
    if run.failure is not None:
        raise run.failure
    steps.reach(2 * len(config.latents))
    scores = {latent: float(results[latent]["score"]) for latent in sorted(results)}
    return ExplainedLatents(run.explained(), scores)


class JudgedAutoInterp(main.AutoInterp):
    """sae-bench's class with another judge, and with an eye on what it would drop."""

    def __init__(
        self,
        config: AutoInterpEvalConfig,
        sae: "StoredSAE",
        memo: LanguageModelMemo,
        tokens: Tensor,
        *,
        judge: Judge,
        generator: random.Random,
    ) -> None:
        # The sparsity is used, and changed in place, only where sae-bench chooses the latents.
        super().__init__(config, hooked(memo), sae, tokens, torch.zeros(0), str(tokens.device), api_key="")
        self.failure: JudgeError | None = None
        """The first, which ends the run."""
        self._memo, self._judge, self._generator = memo, judge, generator
        self._places: list[Tensor] = []
        self._examples: dict[int, tuple[ScoringExample, ...]] = {}
        self._explanations: dict[int, str] = {}
        self._answers: dict[int, tuple[str, list[int] | None]] = {}

    def noting_places(self, index_with_buffer: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`index_with_buffer`, noting where in the text examples are taken from."""

        def noting(x: Tensor, indices: Tensor, buffer: int = 0) -> Tensor:
            if x is self.tokenized_dataset:
                self._places.append(indices)
            return index_with_buffer(x, indices, buffer=buffer)

        return noting

    def gather_data(self) -> tuple[dict[int, main.Examples], dict[int, main.Examples]]:
        """sae-bench's examples; what the latents do at the random ones is looked up here."""
        generation, scoring = super().gather_data()
        places = iter(self._places)
        for latent in self.latents:  # of each, sae-bench takes random, top, and (unless dead) sampled examples
            at_random, _ = next(places), next(places)
            if latent in scoring:
                next(places)
                self._examples[latent] = self._labels(latent, scoring[latent], at_random)
        return generation, scoring

    def _labels(self, latent: int, examples: main.Examples, at_random: Tensor) -> tuple[ScoringExample, ...]:
        buffer = self.cfg.buffer
        windows = [range(column - buffer, column + buffer + 1) for column in at_random[:, 1].tolist()]
        columns = torch.tensor([list(window) for window in windows])
        rows = at_random[:, :1].cpu()
        device = self.tokenized_dataset.device
        texts = self.tokenized_dataset[rows.to(device), columns.to(device)]
        activations = self._memo.activations(rows[:, 0].numpy())
        latents = self.sae.encode(activations[torch.arange(len(rows))[:, None], columns])[..., latent]
        counts = activation_collection.get_bos_pad_eos_mask(texts, self._memo.tokenizer)
        highest = (latents * counts).to(torch.bfloat16).amax(dim=1).tolist()
        of_text = {tuple(text): value for text, value in zip(texts.tolist(), highest, strict=True)}
        labels = []
        for example in examples:
            value = None if any(example.acts) else of_text.get(tuple(example.toks))
            fires = example.is_active if value is None else value > example.act_threshold
            labels.append(ScoringExample(example.is_active, fires, is_random=value is not None))
        return tuple(labels)

    async def run_single_feature(
        self,
        executor: ThreadPoolExecutor,
        latent: int,
        *examples: Any,  # noqa: ANN401 - passed on
    ) -> dict[str, Any] | None:
        """One latent. A failure is noted and ends the run: raised here, asyncio would log it once for every latent."""
        if self.failure is not None:
            return None
        _LATENT.set(latent)
        try:
            result: dict[str, Any] | None = await super().run_single_feature(executor, latent, *examples)
        except JudgeError as error:
            self.failure = self.failure or error
            self._judge.stop()
            return None
        return result

    def get_api_response(self, messages: Messages, max_tokens: int, n_completions: int = 1) -> tuple[list[str], str]:
        """The only call to a judge; sae-bench asks for one completion."""
        assert n_completions == 1
        return [self._judge.reply(messages, max_tokens=max_tokens).strip()], ""

    def get_scoring_prompts(self, explanation: str, scoring_examples: main.Examples) -> Messages:
        """sae-bench's question, the random numbers of its sample answer drawn from the question itself."""
        state = self._generator.getstate()
        self._generator.seed(digest([explanation, [example.to_str() for example in scoring_examples]]))
        messages: Messages = super().get_scoring_prompts(explanation, scoring_examples)
        self._generator.setstate(state)
        return messages

    def parse_explanation(self, explanation: str) -> str:
        """sae-bench's reading, noted."""
        parsed: str = super().parse_explanation(explanation)
        self._explanations[_LATENT.get()] = parsed
        return parsed

    def parse_predictions(self, predictions: str) -> list[int] | None:
        """sae-bench's reading, noted: it drops a latent whose answer it cannot read."""
        parsed: list[int] | None = super().parse_predictions(predictions)
        self._answers[_LATENT.get()] = (predictions, parsed)
        return parsed

    def explained(self) -> dict[int, ExplainedLatent]:
        """Every latent that was judged."""
        return {
            latent: ExplainedLatent(
                explanation=self._explanations[latent],
                predictions=None if parsed is None else tuple(parsed),
                answer=answer,
                examples=self._examples[latent],
            )
            for latent, (answer, parsed) in sorted(self._answers.items())
        }


_LATENT: ContextVar[int] = ContextVar("latent")
"""The latent that an asyncio task is about."""


class _Threads(ThreadPoolExecutor):
    """Threads that do not begin what is queued once the run is interrupted."""

    def __init__(self, max_workers: int, *, on_failure: Callable[[], object]) -> None:
        super().__init__(max_workers)
        self._on_failure = on_failure

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._on_failure()
        self.shutdown(wait=True, cancel_futures=True)


class _Steps:
    """Stands in for tqdm in sae-bench: counts what is taken from an iterable, and prints nothing."""

    def __init__(self, progress: Callable[[int], object]) -> None:
        self._progress, self._done = progress, 0

    def __call__(self, iterable: Iterable[Any], **_: object) -> Iterator[Any]:
        for item in iterable:
            yield item
            self.reach(self._done + 1)

    def reach(self, number: int) -> None:
        """Counts on to `number`: dead latents are not judged."""
        self._progress(number - self._done)
        self._done = number


def _in_silence(iterable: Sequence[Any], **_: object) -> Sequence[Any]:
    return iterable


def _say_nothing(*_: object) -> None:
    """What sae-bench prints is among our figures: latents without examples are counted."""


@contextlib.contextmanager
def _substituted(module: ModuleType, **names: object) -> Iterator[None]:
    """Inside, the module has these names; sae-bench offers no other way to them."""
    former = {name: vars(module)[name] for name in names if name in vars(module)}
    vars(module).update(names)
    try:
        yield
    finally:
        for name in names:
            del vars(module)[name]
        vars(module).update(former)
