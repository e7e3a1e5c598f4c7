"""A folder of trained SAEs that can be uploaded to a model hub: SAELens's files, ours, and a card in words and numbers.

<output>/README.md              what these SAEs are; every number comes from their cards
<output>/<variant>/cfg.json, sae_weights.safetensors, card.json, log.jsonl
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluate.compare.treatments import all_settings, shared_and_own
from evaluate.dependencies import diverged_at
from store.atomic import write_bytes
from store.errors import StoreError
from store.lease import exclusive_lock
from store.replace import assembly_folder, check_target, is_vacant, replace_folder
from store.sae.artefact import CARD_FILE, LOG_FILE, SAELENS_FILE, WEIGHTS_FILE, SAECard, load_sae

README = "README.md"
_COLUMNS = {  # of the table: what the card calls it -> what the table calls it, and how it is formatted
    "explained_variance": ("explained variance", ".4f"),
    "l0": ("L0", ".1f"),
    "mse": ("MSE", ".3f"),
    "dead_latents": ("dead latents", "d"),
    "lambda": ("final lambda", ".4g"),
    "penalty": ("P", ".4g"),
    "penalty_lower_bound": ("lower bound of P", ".4g"),
    "mean_max_cosine": ("mean max cosine", ".4f"),
}


def run(
    models: Path, names: Sequence[str], *, output: Path, with_diverged: bool, license_id: str | None = None
) -> list[str]:
    """Copies the SAEs `names` from `models` into the new folder `output`, with a card; returns the names.

    Args:
        models: the folder of a folder per variant.
        names: of the variants; all of them where there are none.
        output: must be new or empty.
        with_diverged: also copies SAEs whose training diverged, with a warning in the card.
        license_id: for the card, such as mit.

    Raises:
        ValueError: an SAE is not there, is damaged or diverged, or `output` is not empty.
    """
    wanted = list(names) or sorted(path.parent.name for path in models.glob(f"[!.]*/{CARD_FILE}"))
    if not wanted:
        raise StoreError(f"expected trained SAEs in {models}, found none. Run `dvc repro train`, or `dvc pull models`")
    if not is_vacant(output):
        raise ValueError(f"expected {output} to be new or an empty folder, found files in it. Give another --output")
    cards = {name: load_sae(models / name)[1] for name in wanted}
    diverged = [name for name, card in cards.items() if diverged_at(card) is not None]
    if diverged and not with_diverged:
        raise ValueError(
            f"expected SAEs that trained to the end, but {', '.join(diverged)} diverged. Name the others, or give "
            "--with-diverged to export these as well"
        )
    place = assembly_folder(output, output.with_name(f".{output.name}.unfinished"))
    with exclusive_lock(place) as lease:
        check_target(output, place)
        unfinished = place / "new"
        shutil.rmtree(unfinished, ignore_errors=True)
        for name in wanted:
            (unfinished / name).mkdir(parents=True)
            for file in (WEIGHTS_FILE, SAELENS_FILE, CARD_FILE, LOG_FILE):
                shutil.copyfile(models / name / file, unfinished / name / file)
        write_bytes(unfinished / README, readme(cards, license_id=license_id).encode())
        lease.check()
        if not is_vacant(output):
            raise ValueError(f"expected {output} to stay empty, found files in it. Give another --output")
        replace_folder(unfinished, output)
        shutil.rmtree(place, ignore_errors=True)  # while it is ours: another export may wait for it
    return wanted


def hooks_of(cards: Mapping[str, SAECard]) -> str:
    """The hooks that the SAEs were trained on, each once, in order."""
    return ", ".join(dict.fromkeys(card.hook for card in cards.values()))


def readme(cards: Mapping[str, SAECard], *, license_id: str | None) -> str:
    """The card of the whole folder, Markdown below YAML."""
    first = next(iter(cards.values()))
    sections = [
        front_matter(first, license_id=license_id),
        f"# {len(cards)} sparse autoencoder{'s' * (len(cards) > 1)} on {first.model.name}, {hooks_of(cards)}",
        _introduction(cards),
        "## Use",
        _use(next(iter(cards)), first),
        "## Metrics",
        metrics_table(cards),
        "Explained variance, L0 and MSE are means over the last "
        f"{first.final.get('averaged_records', 'few')} log records, on training batches of rows scaled to a mean "
        "squared length of d_model. The other metrics are those of the final weights. P is the squared Frobenius norm "
        "of the Gram matrix of the decoder's directions minus the identity. Each folder's log.jsonl has the metrics "
        "over the whole training.",
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
    card = max(cards.values(), key=lambda card: card.num_training_rows)  # one that diverged stopped early
    text = (
        f"Trained on the same {card.num_training_rows:,} rows of {card.d_model} channels in the same order, so that a "
        "difference between two of them that start from one seed is the treatment."
    )
    for name, card in cards.items():
        if (step := diverged_at(card)) is not None:
            text += f" **{name} diverged at step {step}: do not use it.**"
    return text


def _use(name: str, card: SAECard) -> str:
    return (
        f"```python\nfrom sae_lens import SAE\n\nsae = SAE.load_from_disk({name!r})  # in this folder\n```\n\n"
        f"It reads raw activations of `{card.hook}` (the training's scale of {card.scale:.6g} is folded back into the "
        f"weights), from sequences of {card.context_length} tokens that begin with "
        f"{'BOS' if card.first_token == 'bos' else 'text'}; positions left out: "
        f"{', '.join(card.excluded_positions) or 'none'}."
    )


def metrics_table(cards: Mapping[str, SAECard]) -> str:
    """The final metrics of every SAE."""
    columns = [key for key in _COLUMNS if any(key in card.final for card in cards.values())]
    lines = [
        "| SAE | architecture | d_sae | " + " | ".join(_COLUMNS[key][0] for key in columns) + " |",
        "|---|---|---:|" + "---:|" * len(columns),
    ]
    for name, card in cards.items():
        cells = [_cell(card.final.get(key), _COLUMNS[key][1]) for key in columns]
        lines.append(f"| {name} | {card.architecture} | {card.d_sae} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else ""


def settings_list(cards: Mapping[str, SAECard]) -> str:
    """The settings that all variants share, then those of a variant alone."""
    shared, own = shared_and_own({name: all_settings(card) for name, card in cards.items()})
    lines = [f"* all: {_pairs(shared)}", *(f"* {name}: {_pairs(settings)}" for name, settings in own.items())]
    return "\n".join(lines)


def _pairs(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}` {json.dumps(value)}" for key, value in sorted(settings.items()))


def lineage(cards: Mapping[str, SAECard]) -> str:
    """Where the SAEs come from, by digests."""
    first = next(iter(cards.values()))
    model = first.model
    lines = [
        f"* language model: {model.name}{f', revision {model.revision}' if model.revision else ''}, weights SHA-256 "
        f"`{model.weights_sha256}`",
        f"* activations: cache digest `{first.cache_digest}`, hook `{hooks_of(cards)}`",
        f"* training algorithm: version {first.train_version}",
        *(f"* {name}: key `{card.key}`, weights SHA-256 `{card.weights_sha256}`" for name, card in cards.items()),
    ]
    return "\n".join(lines)
