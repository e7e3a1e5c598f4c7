"""The training stage, from a cache to SAE artefacts: unchanged variants are reused, the rest is one fused group."""

import functools
import itertools
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from store.atomic import exclusive_lock, replace_folder
from store.earlier import earlier_outputs, files_in
from store.manifest import Manifest
from store.reader import ActivationCache, BatchStream, Position
from store.record import digest
from train.artefacts import save_group
from train.batches import activation_scale
from train.config import TrainConfig, VariantConfig, check_variant_name, check_variant_names
from train.group import VariantGroup
from train.initialise import initial_weights
from train.lambdas import Lambdas, default_lambda_lr
from train.loop import train_to_end
from train.optimizer import StackedAdam
from train.reuse import ResolvedVariant, resolve_variants, reuse_variants


@dataclass(frozen=True)
class Plan:
    """The numbers of a run that follow from the settings and the cache."""

    num_steps: int
    scale: float
    """What rows are multiplied with, so that E||x||^2 = d_model."""
    mean: list[float]
    """Of the raw training rows, (d_model,)."""
    lambda_lr: float
    """Rate of learned log(lambda) per step."""
    penalty_divisor: float
    """What P is divided by in the loss: 1 for `sum`, d_sae for `per_latent`."""


def run(
    config: TrainConfig,
    variants: Mapping[str, VariantConfig],
    *,
    cache_folder: Path,
    output: Path,
    scratch: Path,
    device: str,
    num_threads: int,
    reuse: bool,
    checkpoint_every_seconds: float = 120.0,
) -> None:
    """Trains the variants on the cache and puts one folder per variant into `output`, which is replaced as a whole.

    A killed run continues from its last checkpoint in `scratch` and ends with the same bytes. On SIGTERM or SIGINT a
    checkpoint is written and SystemExit raised.

    Args:
        config: what all variants share.
        variants: by name.
        cache_folder: a complete activation cache.
        output: the folder `models`.
        scratch: for checkpoints and unfinished output; locked while the run lasts.
        device: of torch, such as cpu or cuda. On cuda products are bfloat16, weights and optimiser float32.
        num_threads: of torch's products, and of the decoding.
        reuse: whether variants of earlier outputs that still fit are linked in.
        checkpoint_every_seconds: between checkpoints; it cannot change results.

    Raises:
        ValueError: settings that do not fit the cache, or a variant that diverged.
        StoreError: (a ValueError) a cache that is incomplete or damaged, or another run in the same scratch folder.
    """
    check_variant_names({check_variant_name(name): variant for name, variant in variants.items()})
    torch.set_num_threads(num_threads)
    cache = ActivationCache(cache_folder)
    plan = plan_run(config, cache.manifest)
    resolved = resolve_variants(
        config,
        variants,
        cache_digest=cache.manifest.digest,
        product_dtype=str(product_dtype(torch.device(device))).removeprefix("torch."),
    )
    with exclusive_lock(scratch):
        assembly = scratch / "models"
        interrupted = scratch / "interrupted"  # finished variants of a run that was killed before they were in place
        if assembly.exists():
            shutil.rmtree(interrupted, ignore_errors=True)
            assembly.rename(interrupted)
        assembly.mkdir(parents=True)
        earlier = itertools.chain([files_in(interrupted)], earlier_outputs(str(output))) if reuse else iter(())
        missing = reuse_variants(resolved, earlier, folder=assembly)
        for variant in resolved:
            if variant not in missing:
                print(f"train: {variant.name} is unchanged and reused", file=sys.stderr)
        if missing:
            train_missing(
                config,
                missing,
                plan=plan,
                cache=cache,
                device=torch.device(device),
                num_threads=num_threads,
                checkpoint_every_seconds=checkpoint_every_seconds,
                scratch=scratch,
                assembly=assembly,
            )
        replace_folder(assembly, output)
        shutil.rmtree(interrupted, ignore_errors=True)
        for stale in scratch.glob("checkpoint-*.safetensors"):
            stale.unlink()


def product_dtype(device: torch.device) -> torch.dtype:
    """The number format of the products; weights and optimiser are float32 everywhere."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def plan_run(config: TrainConfig, manifest: Manifest) -> Plan:
    """Checks the settings against the cache and derives steps, scale and rates; ValueError where they do not fit."""
    if config.hook not in manifest.spec.hooks:
        raise ValueError(
            f"expected train.hook to be one of the cached hooks {', '.join(manifest.spec.hooks)}, got {config.hook}. "
            "Choose one of them, or add it to harvest.hooks"
        )
    steps_per_epoch = manifest.num_rows // config.batch_rows
    if steps_per_epoch == 0:
        raise ValueError(
            f"expected train.batch_rows of at most the {manifest.num_rows} rows of the cache, got {config.batch_rows}. "
            "Lower it, or raise harvest.num_rows"
        )
    moments = manifest.moments[config.hook]
    num_steps = steps_per_epoch * config.num_epochs
    return Plan(
        num_steps=num_steps,
        scale=activation_scale(d_model=len(moments.mean), mean_squared_norm=moments.mean_squared_norm),
        mean=list(moments.mean),
        lambda_lr=default_lambda_lr(num_steps) if config.lambda_lr is None else config.lambda_lr,
        penalty_divisor=1.0 if config.penalty_scale == "sum" else float(config.d_sae),
    )


def train_missing(
    config: TrainConfig,
    variants: Sequence[ResolvedVariant],
    *,
    plan: Plan,
    cache: ActivationCache,
    device: torch.device,
    num_threads: int,
    checkpoint_every_seconds: float,
    scratch: Path,
    assembly: Path,
) -> None:
    """Trains the variants as one group and writes them into `assembly`."""
    key = digest([[variant.name, variant.key] for variant in variants])
    group = make_group(config, variants, plan=plan, device=device)
    open_stream = functools.partial(cache_batches, cache, config, num_threads=num_threads)
    records = train_to_end(
        group,
        names=[variant.name for variant in variants],
        open_stream=open_stream,
        num_steps=plan.num_steps,
        batch_rows=config.batch_rows,
        warm_up_fraction=config.lr_warm_up_fraction,
        decay_fraction=config.lr_decay_fraction,
        log_every_steps=config.log_every_steps,
        checkpoint=scratch / f"checkpoint-{key[:16]}.safetensors",
        key=key,
        checkpoint_every_seconds=checkpoint_every_seconds,
    )
    save_group(
        group,
        records,
        variants=variants,
        manifest=cache.manifest,
        hook=config.hook,
        scale=plan.scale,
        num_steps=plan.num_steps,
        batch_rows=config.batch_rows,
        penalty_divisor=plan.penalty_divisor,
        regularizer=config.lambda_regularizer,
        folder=assembly,
    )


def cache_batches(cache: ActivationCache, config: TrainConfig, start: Position, *, num_threads: int) -> BatchStream:
    """The batches of the run from `start` on."""
    return cache.batches(
        config.hook,
        batch_rows=config.batch_rows,
        seed=config.seed,
        start=start,
        num_epochs=config.num_epochs,
        pool_bytes=config.pool_bytes,
        num_threads=num_threads,
    )


def make_group(
    config: TrainConfig, variants: Sequence[ResolvedVariant], *, plan: Plan, device: torch.device
) -> VariantGroup:
    """The stacked variants before their first step."""
    weights = initial_weights(
        seeds=[variant.seed for variant in variants],
        d_sae=config.d_sae,
        mean=plan.mean,
        scale=plan.scale,
        device=device,
    )
    lrs = [variant.lr for variant in variants]
    betas = (config.adam_beta1, config.adam_beta2)
    lambdas = Lambdas(
        [variant.schedule for variant in variants],
        num_steps=plan.num_steps,
        regularizer=config.lambda_regularizer,
        log_rate=plan.lambda_lr,
        model_lrs=torch.tensor(lrs, dtype=torch.float64).to(device),
        model_betas=betas,
        model_eps=config.adam_eps,
    )
    return VariantGroup(
        weights,
        adam=StackedAdam(weights, lrs=lrs, betas=betas, eps=config.adam_eps),
        lambdas=lambdas,
        l1s=[variant.l1 for variant in variants],
        penalty_divisor=plan.penalty_divisor,
        regularizer=config.lambda_regularizer,
        batch_rows=config.batch_rows,
        scale=plan.scale,
        mean=plan.mean,
        dead_after_rows=config.dead_after_rows,
        product_dtype=product_dtype(device),
    )
