"""Settings and facts beside the results: how the variants were trained, and on what data."""

from collections.abc import Mapping
from typing import Any

from evaluate.report.inputs import ReportInputs
from store.cache.manifest import Manifest
from store.cache.norm_summary import norm_summary
from store.cache.spec import CacheSpec
from store.cache.text_account import TextAccount, account_lines
from store.record import plain


def in_words(value: object) -> str:
    """A JSON value as people write it: lists with commas, records as `key: value`."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {in_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(in_words, value))
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def settings_table(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Columns and rows of the settings of variants; a setting that no variant has is left out."""
    flattened = {name: flat(values) for name, values in settings.items()}
    given = [key for values in flattened.values() for key, value in values.items() if value is not None]
    columns = sorted(dict.fromkeys(given), key=_setting_order)
    return {
        "columns": columns,
        "rows": {name: [values.get(column) for column in columns] for name, values in flattened.items()},
    }


def _setting_order(name: str) -> tuple[int, str]:
    """Lambda comes first: kind, value, start, end."""
    known = ["lambda.kind", "lambda.value", "lambda.start", "lambda.end"]
    return (known.index(name) if name in known else len(known) + (not name.startswith("lambda.")), name)


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys: {"lambda": {"kind": "fixed"}} becomes {"lambda.kind": "fixed"}."""
    result: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            result |= flat(item, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = item
    return result


def training_facts(inputs: ReportInputs) -> list[tuple[str, str]]:
    """What the training of all variants had in common."""
    cards = list(inputs.cards.values())

    def all_of(values: list[str]) -> str:
        return ", ".join(dict.fromkeys(values))

    return [
        (
            "Architecture",
            all_of([f"{card.architecture}, {card.d_model} channels to {card.d_sae} latents" for card in cards]),
        ),
        ("Steps", all_of([f"{card.num_steps:,}" for card in cards])),
        ("Rows seen", all_of([f"{card.num_training_rows:,}" for card in cards])),
        ("Activation scale", all_of([f"{card.scale:.6g} (folded back into the weights)" for card in cards])),
        ("Seeds", all_of([str(card.seed) for card in cards])),
    ]


def data_facts(inputs: ReportInputs) -> list[tuple[str, str]]:
    """The activation cache: what it holds and what it was made from."""
    manifest = inputs.manifest
    spec = manifest.spec
    raw = manifest.raw_nbytes() * len(spec.hooks)
    stored = sum(map(manifest.stored_nbytes, spec.hooks))
    return [
        *_model_facts(spec),
        ("Hooks", ", ".join(spec.hooks)),
        (
            "Rows per hook",
            f"{manifest.num_rows:,} of {spec.model.d_model} channels for training, "
            f"{manifest.split_rows('held_out'):,} held out",
        ),
        *(
            (f"Norms of rows at {hook}", str(found))
            for hook in spec.hooks
            if (found := norm_summary(manifest.moments[hook])) is not None
        ),
        *_window_facts(manifest),
        ("Raw", f"{raw / 1e6:,.1f} MB of bfloat16"),
        ("Stored", f"{stored / 1e6:,.1f} MB as {spec.codec}, {raw / stored:.3f} times smaller, without loss"),
        *_lineage_facts(spec),
        *_text_facts(manifest.text_account),
        *(("Harvested", line) for line in (inputs.harvest_log.lines() if inputs.harvest_log else ())),
        ("Cache digest", manifest.digest),
    ]


def _model_facts(spec: CacheSpec) -> list[tuple[str, str]]:
    """Where the activations come from."""
    if spec.is_synthetic:
        return [("Language model", "none: known features"), ("Features", f"SHA-256 {spec.model.weights_sha256}")]
    return [
        ("Language model", f"{spec.model.name}{f' at {spec.model.revision}' if spec.model.revision else ''}"),
        ("Model weights", f"SHA-256 {spec.model.weights_sha256}"),
        ("Forward pass", f"{spec.compute_dtype}, {spec.forward_batch_sequences} windows at a time"),
    ]


def _window_facts(manifest: Manifest) -> list[tuple[str, str]]:
    """How sequences were made of tokens."""
    spec, held_out = manifest.spec, f"{manifest.num_held_out_sequences:,}"
    if spec.is_synthetic:
        return [
            ("Samples", f"{manifest.num_sequences:,} sequences of {spec.context_length}, each drawn at once"),
            ("Held out", f"{held_out} such sequences of other samples"),
        ]
    return [
        ("Windows of text", f"{manifest.num_sequences:,}"),
        ("Context length", f"{spec.context_length} tokens"),
        ("Windows begin with", "BOS" if spec.first_token == "bos" else "text, without BOS"),
        ("Positions left out", ", ".join(spec.excluded_positions) or "none"),
        ("Held out", f"{held_out} windows of documents that training never saw"),
    ]


def _lineage_facts(spec: CacheSpec) -> list[tuple[str, str]]:
    """What text or which features."""
    if not spec.is_synthetic:
        return [("Text: " + key.replace("_", " "), in_words(plain(value))) for key, value in sorted(spec.text.items())]
    settings = flat(spec.text)
    return [
        (f"Known features: {key.removeprefix('settings.').replace('_', ' ')}", in_words(value))
        for key, value in settings.items()
        if key.startswith("settings.") and value is not None
    ]


def _text_facts(account: TextAccount | None) -> list[tuple[str, str]]:
    """What became of the text, where the cache says it."""
    lines = [] if account is None else account_lines(account)
    return [("Text read", line.strip()) for line in lines]
