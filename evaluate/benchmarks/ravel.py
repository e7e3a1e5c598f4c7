"""The `ravel` benchmark of sae-bench: patching latents should change one attribute of an entity and leave the others.

sae-bench's own loop over entities and attributes runs. Substituted, while it runs, are the loading of the tokenizer by
hub name, and `get_module`: decoder layers of transformers 5 give a tensor where sae-bench's hooks expect a tuple.
"""

import contextlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, JsonValue, model_validator

from compute.code_version import CodeVersion
from evaluate.benchmarks.benchmark import Benchmark, EvaluatedSAE, Measurement, NotMeasurable, NotRun
from evaluate.benchmarks.context import BenchmarkContext
from store.record import Record, plain

if TYPE_CHECKING:
    from torch import Tensor

PositiveCount = Annotated[int, Field(gt=0)]
DATASET = "adamkarvonen/ravel_prompts"
FILES = ("attribute_to_prompts", "prompt_to_split", "entity_attributes", "entity_to_split")
MODELS = ("Gemma2ForCausalLM", "GPTNeoXForCausalLM")
"""Architectures whose layers sae-bench finds."""


class RavelConfig(Record):
    """Which entities and attributes, and how latents are chosen. All but the last two are sae-bench's."""

    random_seed: int
    entity_attribute_selection: dict[str, list[str]]
    """Attributes by kind of entity, at least two of each."""
    top_n_entities: PositiveCount
    """Entities of each kind: those of which the language model knows most."""
    top_n_templates: PositiveCount
    """sae-bench takes no notice of it."""
    full_dataset_downsample: PositiveCount | None
    """Prompts of each kind that are tried; null for all."""
    num_pairs_per_attribute: PositiveCount
    train_test_split: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Share of the pairs on which latents are chosen."""
    llm_batch_size: PositiveCount
    """Pairs in a batch; pairs that fill no batch are dropped."""
    learning_rate: Annotated[float, Field(gt=0.0)]
    num_epochs: PositiveCount
    n_generated_tokens: PositiveCount
    data_revision: str
    """Of the data set adamkarvonen/ravel_prompts: a commit, so that it stays the same."""
    min_model_parameters: Annotated[int, Field(ge=0)]
    """Of the language model: a smaller one knows too few of the facts."""

    @model_validator(mode="after")
    def _two_attributes(self) -> Self:
        few = [kind for kind, attributes in self.entity_attribute_selection.items() if len(attributes) < 2]
        if few or not self.entity_attribute_selection:
            raise ValueError(f"expected two attributes or more for each kind of entity, got fewer for {few or 'none'}")
        return self


@dataclass(frozen=True)
class RavelSetUp:
    """What all SAEs share."""

    prompts: dict[str, Path]
    """By kind of entity, the folder with the prompts that the language model completes rightly."""


def not_run(config: RavelConfig, context: BenchmarkContext) -> NotRun | None:
    """Why ravel cannot mean anything here."""
    from evaluate.meaningful import model_too_small
    from language_model.checkpoint import read_object

    architecture = (read_object(context.model_folder / "config.json").get("architectures") or ["unknown"])[0]
    if architecture not in MODELS:
        return NotRun(
            f"sae-bench finds the layers of {' and '.join(MODELS)} for ravel, and not those of {architecture}.",
            "Run it on one of those language models.",
        )
    return model_too_small("ravel", context, least=config.min_model_parameters)


def prepare(config: RavelConfig, context: BenchmarkContext) -> RavelSetUp:
    """Finds the prompts that the language model completes rightly, once for each kind of entity."""
    prompts = {}
    data = {kind: _data(kind, config, context) for kind in config.entity_attribute_selection}
    for kind, attributes in config.entity_attribute_selection.items():
        inputs: dict[str, JsonValue] = {
            **BENCHMARK.version.identity("version"),
            "language_model": context.manifest.spec.model.identifying(),
            "compute_dtype": context.manifest.spec.compute_dtype,
            "device": context.device.type,
            "kind": kind,
            "attributes": list(attributes),
            "data_revision": config.data_revision,
            **{
                name: plain(config)[name]
                for name in (
                    "random_seed", "top_n_entities", "full_dataset_downsample", "llm_batch_size", "n_generated_tokens"
                )
            },
        }  # fmt: skip
        with context.kept.open("ravel", inputs) as kept:
            if not kept.is_complete:
                _keep_prompts(kept.path, kind, data[kind], config, context)
                kept.finish()
            prompts[kind] = kept.path
        _check_enough(kept.path, kind, config, context)
    return RavelSetUp(prompts)


def _data(kind: str, config: RavelConfig, context: BenchmarkContext) -> Path:
    from evaluate.hub_data import keep_files

    names = [f"ravel_{kind}_{name}.json" for name in FILES]
    return keep_files(context.kept, "ravel", dataset=DATASET, revision=config.data_revision, names=names)


def _keep_prompts(folder: Path, kind: str, data: Path, config: RavelConfig, context: BenchmarkContext) -> None:
    from sae_bench.evals.ravel.instance import RAVELInstance

    base = folder / "base"
    base.mkdir()
    for name in FILES:
        shutil.copy(data / f"ravel_{kind}_{name}.json", base)
    settings = _settings(config, context, folder)
    settings.llm_batch_size = config.llm_batch_size * 8  # as sae-bench does: completing takes less memory than choosing
    seed(config.random_seed)
    instance = RAVELInstance.create_from_files(
        config=settings,
        entity_type=kind,
        tokenizer=context.language_model.tokenizer(),
        data_dir=str(folder),
        model=context.language_model.plain,
        model_name=settings.model_name,
        attribute_types=list(config.entity_attribute_selection[kind]),
        downsample=config.full_dataset_downsample,
    )
    instance.create_and_save_filtered_dataset(artifact_dir=str(folder), top_n_entities=config.top_n_entities)


def _check_enough(folder: Path, kind: str, config: RavelConfig, context: BenchmarkContext) -> None:
    """NotMeasurable where an attribute has too few right prompts to fill a batch of each part, or one value only."""
    prompts = _filtered(folder, kind, config, context).prompts
    for attribute in config.entity_attribute_selection[kind]:
        values = Counter(prompt.attribute_label for prompt in prompts if prompt.attribute_type == attribute)
        pairs = 2 * min(sum(values.values()), config.num_pairs_per_attribute)
        chosen_on = int(pairs * config.train_test_split)
        if len(values) < 2 or min(chosen_on, pairs - chosen_on) < config.llm_batch_size:
            raise NotMeasurable(
                f"The language model completes {sum(values.values())} prompts for the {attribute} of a {kind} rightly, "
                f"with {len(values)} different answers; batches of {config.llm_batch_size} pairs need more.",
                "Take a larger language model, or lower evaluate.ravel.llm_batch_size.",
            )


def _filtered(folder: Path, kind: str, config: RavelConfig, context: BenchmarkContext) -> Any:  # noqa: ANN401 - sae-bench's
    from sae_bench.evals.ravel.instance import RAVELFilteredDataset, get_instance_name

    name = get_instance_name(kind, _model_name(context), config.full_dataset_downsample, config.top_n_entities)
    return RAVELFilteredDataset.load(str(folder / name))


def _model_name(context: BenchmarkContext) -> str:
    return context.manifest.spec.model.name


def _settings(config: RavelConfig, context: BenchmarkContext, folder: Path) -> Any:  # noqa: ANN401 - sae-bench's record
    from sae_bench.evals.ravel.eval_config import RAVELEvalConfig

    values: dict[str, Any] = plain(config)
    del values["data_revision"], values["min_model_parameters"]
    return RAVELEvalConfig(
        **values,
        model_name=_model_name(context),
        llm_dtype=context.manifest.spec.compute_dtype,
        artifact_dir=str(folder),
    )


def measure(sae: EvaluatedSAE, config: RavelConfig, context: BenchmarkContext, shared: RavelSetUp) -> Measurement:
    """Chooses latents for each attribute, patches them from another entity, and reads what the language model says.

    Metrics, means over kinds of entity and their attributes: cause_score (the patched attribute becomes that of the
    other entity), isolation_score (another attribute stays), disentanglement_score (the mean of both).
    """
    import numpy as np
    from sae_bench.evals.ravel.main import run_eval_single_dataset

    from evaluate.output_dtype import reconstructing_in
    from evaluate.sae_bench import to_sae_bench

    model = context.language_model.plain
    adapted = reconstructing_in(
        to_sae_bench(sae.weights, sae.card, device=context.device), context.language_model.dtype
    )
    counted = Counter[str]()
    scores: dict[str, dict[str, float]] = {}
    attributes: dict[str, Any] = {}
    seed(config.random_seed)
    with _substituted(context, counted, context.progress):
        for kind, folder in shared.prompts.items():
            try:
                scores[kind], attributes[kind] = run_eval_single_dataset(
                    kind, _settings(config, context, folder), adapted, model
                )
            finally:
                model.eval()  # sae-bench leaves it as for training
    means = {
        name: float(np.mean([of_kind[name] for of_kind in scores.values()])) for name in next(iter(scores.values()))
    }
    if not all(np.isfinite(value) for value in means.values()):
        raise ValueError(
            "expected pairs of both sorts, with the same and with another answer, for every attribute, got "
            f"{dict(counted)}. Raise evaluate.ravel.num_pairs_per_attribute, or lower its llm_batch_size"
        )
    return Measurement(
        metrics={
            "disentanglement_score": means["disentangle_score"],
            "cause_score": means["cause_score"],
            "isolation_score": means["isolation_score"],
        },
        basis={
            "cause_pairs": counted["cause"],
            "isolation_pairs": counted["isolation"],
            "attributes": sum(len(found) for found in config.entity_attribute_selection.values()),
        },
        remarks=_remarks(means),
        details={
            "sae_bench": {kind: found for of_kind in attributes.values() for kind, found in of_kind.items()},
            "standard_errors": "none: pairs share entities and prompts, so they are no independent draws",
        },
    )


def _remarks(means: dict[str, float]) -> tuple[str, ...]:
    if means["cause_score"] == 0.0:
        return ("Patching never changed an attribute, so the isolation score says only that nothing was changed.",)
    return ()


def seed(number: int) -> None:
    """As sae-bench begins each SAE."""
    import random

    import torch

    random.seed(number)
    torch.manual_seed(number)
    torch.set_grad_enabled(True)


class TupleLayer:
    """A decoder layer whose hooks see a tuple, whether the layer gives one or a tensor."""

    def __init__(self, layer: Any) -> None:  # noqa: ANN401 - a module
        self._layer = layer

    def register_forward_hook(self, hook: Callable[..., Any]) -> Any:  # noqa: ANN401 - a handle of torch's
        """Registers a hook that is given a tuple and gives one back."""

        def with_tuple(module: Any, inputs: Any, output: Any) -> "Tensor | tuple[Tensor, ...]":  # noqa: ANN401 - torch's
            if isinstance(output, tuple):
                changed: tuple[Tensor, ...] = hook(module, inputs, output)
                return changed
            first: Tensor = hook(module, inputs, (output,))[0]
            return first

        return self._layer.register_forward_hook(with_tuple)


@contextlib.contextmanager
def _substituted(context: BenchmarkContext, counted: Counter[str], progress: Callable[[int], object]) -> Iterator[None]:
    """Layers that give tuples and this model's tokenizer; and the pairs that are scored are counted."""
    from sae_bench.evals.ravel import intervention, main
    from sae_bench.sae_bench_utils import activation_collection

    get_module, tokenizer = activation_collection.get_module, main.AutoTokenizer
    generate = intervention.generate_batched_interventions

    class Tokenizer:
        @staticmethod
        def from_pretrained(name: str) -> Any:  # noqa: ANN401 - a tokenizer of transformers
            del name
            return context.language_model.tokenizer()

    def counting(model: Any, mask: Any, tokens: Any, pairs: Any, **keywords: Any) -> tuple[float, float]:  # noqa: ANN401
        for batch in pairs:
            same = int((batch[4] == batch[5]).sum())
            counted.update({"isolation": same, "cause": len(batch[4]) - same})
        found: tuple[float, float] = generate(model, mask, tokens, pairs, **keywords)
        progress(1)
        return found

    activation_collection.get_module = lambda model, layer: TupleLayer(get_module(model, layer))
    main.AutoTokenizer = Tokenizer
    intervention.generate_batched_interventions = counting
    try:
        yield
    finally:
        activation_collection.get_module = get_module
        main.AutoTokenizer = tokenizer
        intervention.generate_batched_interventions = generate


BENCHMARK = Benchmark(
    name="ravel",
    config=RavelConfig,
    needs=frozenset({"language_model", "hub"}),
    version=CodeVersion(
        number=1,
        files=(
            "evaluate/benchmarks/benchmark.py",
            "evaluate/benchmarks/context.py",
            "evaluate/benchmarks/ravel.py",
            "evaluate/hub_data.py",
            "evaluate/loaded_model.py",
            "evaluate/meaningful.py",
            "evaluate/output_dtype.py",
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
        code_sha256="98d20693cbde987a62677e2cd7a6f79a14a2208d7819a7bc0e1a812956063134",
    ),
    metrics={"disentanglement_score": "higher", "cause_score": "higher", "isolation_score": "higher"},
    headlines=("disentanglement_score",),
    measures="Whether patching a few latents changes one attribute of a city or a person and leaves the others as they "
    "are (sae-bench ravel).",
    prepare=prepare,
    measure=measure,
    not_run=not_run,
    num_steps=lambda config: sum(len(found) for found in config.entity_attribute_selection.values()),
)
