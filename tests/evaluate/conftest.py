"""A small real study: a cache of a tiny Gemma-2's activations, and SAEs made by hand whose metrics are known."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evaluate.benchmarks.autointerp import AutoInterpConfig
from evaluate.benchmarks.core import CoreConfig
from evaluate.benchmarks.geometry import GeometryConfig
from evaluate.benchmarks.latents import LatentsConfig
from evaluate.benchmarks.registry import BENCHMARKS
from evaluate.config import EvaluateConfig
from evaluate.judge.limits import JudgeLimits
from evaluate.judge.settings import LexicalJudge
from evaluate.run import run
from language_model.config import LanguageModelConfig
from language_model.load import identify, load_model
from store.cache.manifest import Manifest, load_manifest
from store.cache.moments import ShardSums
from store.cache.spec import CacheSpec
from store.sae.artefact import save_sae
from store.sae.geometry import gram_penalty_and_gradient, gram_penalty_bound
from store.sae.weights import SAEWeights
from store.write.writer import CacheWriter

HOOK = "blocks.1.hook_resid_post"
CONTEXT_LENGTH = 12
NUM_SEQUENCES = 8
NUM_HELD_OUT = 8
D_MODEL = 32


@pytest.fixture(scope="session")
def empty_study(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A study with a finished cache and no SAEs. Copied, never changed."""
    root = tmp_path_factory.mktemp("study")
    write_cache(root / "data" / "activations", tiny_model_folder)
    return study_in(root, tiny_model_folder)


@pytest.fixture
def study(empty_study: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """A test's own study with a finished cache and no SAEs yet: its folders, settings and manifest."""
    shutil.copytree(empty_study.root, tmp_path, dirs_exist_ok=True)
    return study_in(tmp_path, empty_study.model_folder)


@pytest.fixture(scope="session")
def six_saes(empty_study: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models and results of six evaluated SAEs, one of each kind. Copied, never changed."""
    root = tmp_path_factory.mktemp("six-saes")
    shutil.copytree(empty_study.root, root, dirs_exist_ok=True)
    study = study_in(root, empty_study.model_folder)
    learned = {"kind": "learned", "start": 1.0, "parametrisation": "log"}
    save(study, "baseline", random_sae(1, spread=0.2))
    save(study, "fixed-1", random_sae(1), settings={"kind": "fixed", "value": 1.0})
    save(study, "adaptive", random_sae(2), settings=learned)
    save(study, "adaptive-high", random_sae(4), settings=learned | {"start": 10.0}, lambda_state="still moving")
    save(study, "floored", identity_sae(), settings=learned, lambda_state="on the floor")
    save(study, "dead", dead_sae(), settings={"kind": "linear", "start": 0.1, "end": 10.0})
    for benchmark in BENCHMARKS:
        evaluate(study, benchmark, reuse=False)
    return root


@pytest.fixture
def cache_without_training_rows(study: SimpleNamespace) -> Path:
    """A copy of the study's cache that has the manifest and what is held out alone."""
    folder = study.root / "without-rows"
    shutil.copytree(study.cache / "held_out", folder / "held_out")
    shutil.copy(study.cache / "manifest.json", folder)
    return folder


@pytest.fixture
def evaluate_all(study: SimpleNamespace) -> Callable[..., None]:
    """Runs benchmarks over the study's SAEs, as the pipeline does."""

    def run_benchmarks(*benchmarks: str, reuse: bool = True) -> None:
        for benchmark in benchmarks or tuple(BENCHMARKS):
            evaluate(study, benchmark, reuse=reuse)

    return run_benchmarks


@pytest.fixture
def add_sae(study: SimpleNamespace) -> Callable[..., None]:
    """Puts an SAE of the given weights into the study, with a training log as train/ writes it."""

    def add(name: str, weights: SAEWeights, **changes: Any) -> None:  # noqa: ANN401 - fields of the card
        save(study, name, weights, **changes)

    return add


@pytest.fixture
def saes() -> SimpleNamespace:
    """SAEs by kind: identity(), random(seed, spread=...), dead()."""
    return SimpleNamespace(identity=identity_sae, random=random_sae, dead=dead_sae)


def study_in(root: Path, model_folder: Path) -> SimpleNamespace:
    return SimpleNamespace(
        root=root,
        model_folder=model_folder,
        model=LanguageModelConfig(name=str(model_folder), revision=None, compute_dtype="float32"),
        config=EvaluateConfig(
            core=CoreConfig(num_reconstruction_sequences=8, num_sparsity_sequences=6, batch_sequences=2),
            geometry=GeometryConfig(num_bins=40),
            sparse_probing=None,
            tpp=None,
            scr=None,
            sparse_probing_sae_probes=None,
            autointerp=AutoInterpConfig(
                judge=LexicalJudge(kind="lexical"),
                num_latents=6,
                num_sequences=8,
                batch_sequences=4,
                dead_latent_threshold=20,
                buffer=2,
                n_top_ex_for_generation=3,
                n_iw_sampled_ex_for_generation=2,
                n_top_ex_for_scoring=1,
                n_random_ex_for_scoring=3,
                n_iw_sampled_ex_for_scoring=1,
            ),
            meta_structure=None,
            mdl=None,
            absorption=None,
            ravel=None,
            unlearning=None,
            recovery=None,
            latents=LatentsConfig(
                num_held_out_sequences=6,
                num_training_sequences=0,
                num_top_contexts=3,
                num_sampled_firings=20,
                num_contexts_per_quantile=1,
                tokens_before=4,
                tokens_after=2,
            ),
        ),
        manifest=load_manifest(root / "data" / "activations"),
        cache=root / "data" / "activations",
        models=root / "models",
        results=root / "results",
    )


def evaluate(
    study: SimpleNamespace,
    benchmark: str,
    *,
    reuse: bool,
    scheduler: str | None = None,
    judge_limits: JudgeLimits | None = None,
) -> None:
    run(
        study.config,
        benchmark=benchmark,
        model=study.model,
        cache=study.cache,
        models_folder=study.models,
        output=study.results / benchmark,
        scratch=study.root / "data" / ".partial" / "evaluate",
        set_ups=study.root / "data" / ".evaluation",
        device="cpu",
        reuse=reuse,
        scheduler=scheduler,
        judge_limits=judge_limits,
    )


def save(
    study: SimpleNamespace,
    name: str,
    weights: SAEWeights,
    *,
    settings: dict[str, Any] | None = None,
    lambda_state: str = "on its curve",
    seed: int = 0,
    **changes: Any,  # noqa: ANN401 - fields of the card
) -> None:
    """An artefact as train/ leaves it. `settings` is the variant's lambda."""
    schedule = settings or {"kind": "fixed", "value": 0.0}
    log = training_log(weights, schedule)
    final = {"lambda": log[-1]["lambda"], "penalty": log[-1]["penalty"], "l0": 5.0}
    if schedule["kind"] == "learned":
        final |= {"lambda_state": lambda_state, "scaled_penalty": log[-1]["penalty"]}
    card = {
        "name": name,
        "architecture": weights.form,
        "key": "0" * 64,
        "hook": HOOK,
        "model": study.manifest.spec.model,
        "cache_digest": study.manifest.digest,
        "context_length": CONTEXT_LENGTH,
        "scale": 0.6,
        "seed": seed,
        "num_steps": 100,
        "num_training_rows": 6400,
        "train_version": 1,
        "variant": {"lambda": schedule, "l1": 0.3, "lr": 3e-4, "seed": seed},
        "train": {"penalty_scale": "sum", "lambda_regularizer": 0.1, "batch_rows": 64, "seed": 0},
        "final": final,
    }
    save_sae(study.models / name, weights, card | changes, log)


def write_cache(folder: Path, model_folder: Path) -> Manifest:
    """A cache of random windows, with the model's real activations at the hook."""
    spec = CacheSpec(
        model=identify(model_folder, name=str(model_folder), revision=None),
        hooks=(HOOK,),
        text={"kind": "files", "digest": "ab" * 32},
        context_length=CONTEXT_LENGTH,
        excluded_positions=("bos",),
        packing="windows of random tokens, for tests",
        held_out_fraction=0.5,
        compute_dtype="float32",
        forward_batch_sequences=4,
        sequences_per_chunk=2,
        chunks_per_shard=4,
        codec="bf16_planes_v1",
        harvest_version=1,
    )
    tokens = random_windows(NUM_SEQUENCES + NUM_HELD_OUT)
    model = load_model(model_folder, dtype=torch.float32, device="cpu")
    with CacheWriter(folder, spec, num_sequences=NUM_SEQUENCES, num_held_out_sequences=NUM_HELD_OUT) as writer:
        for split, of_split in (("training", tokens[:NUM_SEQUENCES]), ("held_out", tokens[NUM_SEQUENCES:])):
            for shard in writer.missing_shards(split):
                first = shard * spec.sequences_per_shard
                windows = of_split[first : first + spec.sequences_per_shard]
                with torch.no_grad():
                    output = model(input_ids=torch.from_numpy(windows.astype(np.int64)), output_hidden_states=True)
                rows = output.hidden_states[2][:, 1:].reshape(-1, D_MODEL).to(torch.bfloat16)
                wide = rows.double()
                sums = ShardSums(
                    num_rows=len(rows), sum=wide.sum(dim=0).tolist(), sum_of_squares=wide.square().sum(dim=0).tolist()
                )
                writer.submit_shard(shard, split=split, tokens=windows, rows={HOOK: rows}, sums={HOOK: sums}).result()
        return writer.finish()


def random_windows(num_sequences: int) -> NDArray[np.uint32]:
    """BOS and random tokens, one of them an EOS in the middle of the first window."""
    tokens = np.random.default_rng(0).integers(4, 300, size=(num_sequences, CONTEXT_LENGTH), dtype=np.uint32)
    tokens[:, 0] = 2
    tokens[NUM_SEQUENCES, 5] = 1
    return tokens


def identity_sae() -> SAEWeights:
    """F = 2d latents +x_i and -x_i: reconstructs every row exactly, with L0 = d."""
    identity = torch.eye(D_MODEL)
    return SAEWeights(
        W_enc=torch.cat([identity, -identity], dim=1),
        b_enc=torch.zeros(2 * D_MODEL),
        W_dec=torch.cat([identity, -identity], dim=0),
        b_dec=torch.zeros(D_MODEL),
    )


def random_sae(seed: int, *, spread: float = 1.0) -> SAEWeights:
    """Random unit decoder rows around a common direction; the smaller the spread, the more alike they are."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.zeros(D_MODEL)
    common[0] = 1.0
    W_dec = common * (1.0 - spread) + spread * torch.randn(2 * D_MODEL, D_MODEL, generator=generator)
    W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
    return SAEWeights(
        W_enc=W_dec.T.contiguous(),
        b_enc=torch.full((2 * D_MODEL,), -0.5),
        W_dec=W_dec,
        b_dec=torch.randn(D_MODEL, generator=generator) * 0.1,
    )


def dead_sae() -> SAEWeights:
    """Latents that never fire, and an output of zero."""
    weights = random_sae(3)
    return SAEWeights(weights.W_enc, torch.full((2 * D_MODEL,), -1e4), weights.W_dec, torch.zeros(D_MODEL))


def training_log(weights: SAEWeights, schedule: dict[str, Any]) -> list[dict[str, Any]]:
    """Lines with the fields that train/metrics.py writes, ending at the weights' own P."""
    penalty = float(gram_penalty_and_gradient(weights.W_dec)[0])
    bound = gram_penalty_bound(*weights.W_dec.shape)
    lines = []
    for step in range(0, 100, 5):
        share = step / 95
        value = penalty * (1.0 + (1.0 - share))
        lam = {
            "fixed": lambda: schedule["value"],
            "linear": lambda share=share: schedule["start"] + share * (schedule["end"] - schedule["start"]),
            "learned": lambda share=share: schedule["start"] * math.exp(-3.0 * share),
        }[schedule["kind"]]()
        lines.append(
            {
                "step": step,
                "rows": 64 * (step + 1),
                "l0": 20.0 - 15.0 * share,
                "explained_variance": 0.9 * share,
                "lambda": lam,
                "penalty": value,
                "scaled_penalty": value,
                "penalty_lower_bound": bound,
                "penalty_excess": value - bound,
                "mean_max_cosine": 0.5 - 0.2 * share,
            }
        )
    return lines
