"""A folder of trained SAEs that can be uploaded to a model hub: SAELens's files, ours, and a card in words and numbers.

<output>/README.md              what these SAEs are; every figure comes from their cards
<output>/<variant>/cfg.json, sae_weights.safetensors, card.json, log.jsonl
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from store.atomic import replace_folder, write_bytes
from store.errors import StoreError
from store.sae.artefact import CARD_FILE, LOG_FILE, SAELENS_FILE, WEIGHTS_FILE, SAECard, load_sae

README = "README.md"
_FIGURES = {
    "explained_variance": ("explained variance", ".4f"),
    "l0": ("L0", ".1f"),
    "mse": ("MSE", ".3f"),
    "dead_latents": ("dead latents", "d"),
    "lambda": ("final lambda", ".4g"),
    "penalty": ("P", ".4g"),
    "penalty_lower_bound": ("least P", ".4g"),
    "mean_max_cosine": ("mean max cosine", ".4f"),
}


def run(
    models: Path, names: Sequence[str], *, output: Path, with_diverged: bool, license_id: str | None = None
) -> list[str]:
    """Copies the SAEs `names` (all, where there are none) from `models` into the new folder `output`; their names.

    Raises:
        ValueError: an SAE is not there, is damaged or diverged, or `output` holds something already.
    """
    wanted = list(names) or sorted(path.parent.name for path in models.glob(f"[!.]*/{CARD_FILE}"))
    if not wanted:
        raise StoreError(f"expected trained SAEs in {models}, found none. Run `dvc repro train`, or `dvc pull models`")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"expected {output} to be new or an empty folder, found something. Give another --output")
    cards = {name: load_sae(models / name)[1] for name in wanted}
    diverged = [name for name, card in cards.items() if "diverged_at_step" in card.final]
    if diverged and not with_diverged:
        raise ValueError(
            f"expected SAEs that trained to the end, but {', '.join(diverged)} diverged. Name the others, or give "
            "--with-diverged to export these as well"
        )
    unfinished = output.with_name(f".{output.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for name in wanted:
        (unfinished / name).mkdir(parents=True)
        for file in (WEIGHTS_FILE, SAELENS_FILE, CARD_FILE, LOG_FILE):
            shutil.copyfile(models / name / file, unfinished / name / file)
    write_bytes(unfinished / README, readme(cards, license_id=license_id).encode())
    replace_folder(unfinished, output)
    return wanted


def readme(cards: Mapping[str, SAECard], *, license_id: str | None) -> str:
    """The card of the whole folder, Markdown below YAML."""
    first = next(iter(cards.values()))
    sections = [
        front_matter(first, license_id=license_id),
        f"# {len(cards)} sparse autoencoder{'s' * (len(cards) > 1)} on {first.model.name}, {first.hook}",
        _introduction(cards),
        "## Use",
        _use(next(iter(cards)), first),
        "## Figures",
        figures_table(cards),
        "Explained variance, L0 and MSE are means over the last "
        f"{first.final.get('averaged_records', 'few')} log records, on training batches of rows scaled to a mean "
        "squared length of d_model; the rest belongs to the final weights. P is the squared Frobenius norm of the Gram "
        "matrix of the decoder's directions minus the identity. Each folder's log.jsonl has them over the whole "
        "training.",
        "## Settings",
        settings_list(cards),
        "## Lineage",
        lineage(cards),
    ]
    return "\n\n".join(sections) + "\n"


def front_matter(card: SAECard, *, license_id: str | None) -> str:
    """What a hub reads: library, tags, the base model where it is on a hub, the licence where one is given."""
    lines = ["library_name: saelens", "tags:", "- sparse-autoencoder", "- mechanistic-interpretability", "- saelens"]
    if card.model.revision is not None:
        lines += [f"base_model: {json.dumps(card.model.name)}"]
    if license_id is not None:
        lines += [f"license: {json.dumps(license_id)}"]
    return "\n".join(["---", *lines, "---"])


def _introduction(cards: Mapping[str, SAECard]) -> str:
    card = max(cards.values(), key=lambda each: each.num_training_rows)  # one that diverged stopped early
    text = (
        f"Trained on the same {card.num_training_rows:,} rows of {card.d_model} channels in the same order, so that a "
        "difference between two of them that start from one seed is the treatment."
    )
    diverged = {
        name: card.final["diverged_at_step"] for name, card in cards.items() if "diverged_at_step" in card.final
    }
    for name, step in diverged.items():
        text += f" **{name} diverged at step {step}: do not use it.**"
    return text


def _use(name: str, card: SAECard) -> str:
    return (
        f"```python\nfrom sae_lens import SAE\n\nsae = SAE.load_from_disk({name!r})  # in this folder\n```\n\n"
        f"It reads raw activations of `{card.hook}` (the training's scale of {card.scale:.6g} is folded back into the "
        f"weights), from sequences of {card.context_length} tokens that begin with BOS; BOS itself was left out."
    )


def figures_table(cards: Mapping[str, SAECard]) -> str:
    """The final figures of every SAE."""
    columns = [key for key in _FIGURES if any(key in card.final for card in cards.values())]
    lines = [
        "| SAE | architecture | d_sae | " + " | ".join(_FIGURES[key][0] for key in columns) + " |",
        "|---|---|---:|" + "---:|" * len(columns),
    ]
    for name, card in cards.items():
        cells = [_cell(card.final.get(key), _FIGURES[key][1]) for key in columns]
        lines.append(f"| {name} | {card.architecture} | {card.d_sae} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: object, form: str) -> str:
    if isinstance(value, int | float):
        return format(value, form)
    return ""


def settings_list(cards: Mapping[str, SAECard]) -> str:
    """What all share, once, then what is a variant's own."""
    everything = {name: {**card.train, **card.variant} for name, card in cards.items()}
    first = next(iter(everything.values()))
    shared = {
        key: value
        for key, value in first.items()
        if all(each.get(key, _ABSENT) == value for each in everything.values())
    }
    lines = [f"* all: {_pairs(shared)}"]
    for name, settings in everything.items():
        own = {key: value for key, value in settings.items() if key not in shared}
        if own:
            lines.append(f"* {name}: {_pairs(own)}")
    return "\n".join(lines)


_ABSENT = object()


def _pairs(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}` {json.dumps(value)}" for key, value in sorted(settings.items()))


def lineage(cards: Mapping[str, SAECard]) -> str:
    """Where the SAEs come from, by digests."""
    card = next(iter(cards.values()))
    model = card.model
    lines = [
        f"* language model: {model.name}{f', revision {model.revision}' if model.revision else ''}, weights SHA-256 "
        f"`{model.weights_sha256}`",
        f"* activations: cache digest `{card.cache_digest}`, hook `{card.hook}`",
        f"* training algorithm: version {card.train_version}",
        *(f"* {name}: key `{each.key}`, weights SHA-256 `{each.weights_sha256}`" for name, each in cards.items()),
    ]
    return "\n".join(lines)
