"""`pipeline.py report`: a self-contained HTML page and a Markdown summary, from files alone, without language model.

The same inputs give the same bytes: no time, no host, no path of this machine.
"""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evaluate.benchmarks.registry import BENCHMARKS
from evaluate.compare.seeds import seed_groups
from evaluate.compare.shared_latents import chance_best_match, shared_latents
from evaluate.compare.treatments import BASELINE, all_settings, baseline_of, shared_and_own, shown_in_full
from evaluate.compare.uncertainty import SURE, Estimate, estimates_of_variants
from evaluate.report.benchmark_tables import as_csv, benchmark_tables, cells, headline_columns, numbers
from evaluate.report.figures import all_figures
from evaluate.report.findings import listed
from evaluate.report.inputs import ReportInputs, gather
from evaluate.report.latents import page as latents_page
from evaluate.report.latents.view import views
from evaluate.report.metrics import SAME_WITHIN, Metric, columns, table_row
from evaluate.report.recovery import found_cosine, world_tables
from evaluate.report.references import reference_tables
from evaluate.report.svg import series_class
from evaluate.report.text import findings
from store.atomic import write_bytes
from store.cache.manifest import Manifest
from store.cache.norm_summary import norm_summary
from store.cache.spec import CacheSpec
from store.cache.text_account import TextAccount, account_lines
from store.files.open import Place
from store.record import Record, plain

_FOLDER = Path(__file__).parent / "templates"
_KEY_METRICS = (
    ("core/l0", "L0", 1),
    ("core/explained_variance", "explained variance", 3),
    ("core/ce_loss_score", "CE recovered", 3),
    ("recovery/mcc", "MCC", 3),
)
QUESTION = (
    "Does a penalty that makes the decoder directions of a sparse autoencoder more orthogonal give better features, "
    "and should its strength lambda be fixed, scheduled or learned?"
)


def run(
    config: Record,
    *,
    variants: list[str],
    models_folder: Path,
    results_folder: Path,
    cache: Place,
    output: Path,
    references: Path | None = None,
) -> Path:
    """Writes report.html, report.md, tables of all numbers, and the latent browser; returns the path of the page.

    `variants` names what the report is about, in its order. Files of other variants are ignored. `references` is the
    folder of published results.

    Raises:
        StoreError: something that the report needs is missing or stale. Nothing is written.
    """
    inputs = gather(
        config,
        variants=variants,
        models_folder=models_folder,
        results_folder=results_folder,
        cache=cache,
        references=references,
    )
    latents = views(inputs, results_folder)
    data = page_data(inputs)
    page = render("page.html.j2", data)
    summary = render("summary.md.j2", data)
    write_bytes(output / "report.html", page.encode())
    write_bytes(output / "report.md", summary.encode())
    records = numbers(inputs)
    write_bytes(output / "metrics.csv", as_csv(records).encode())
    write_bytes(output / "metrics.json", (json.dumps(records, indent=1) + "\n").encode())
    if latents:
        latents_page.write(latents, output)
    else:
        latents_page.remove(output)
    return output / "report.html"


def render(template: str, data: Mapping[str, Any]) -> str:
    """Fills a template of this folder. HTML escapes every value; Markdown escapes those that pass through `md`."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = markdown_text
    environment.filters["digits"] = with_digits
    environment.filters["signed"] = lambda value, digits: with_digits(value, digits, sign="+")
    environment.filters["figures"] = significant
    environment.filters["signed_figures"] = lambda value: significant(value, sign="+")
    return environment.get_template(template).render(data)


def markdown_text(value: object) -> str:
    """`value` as literal text inside a Markdown paragraph or table cell."""
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", " ".join(str(value).split()))


def significant(value: float, digits: int = 4, sign: str = "") -> str:
    """A number with so many significant digits; a large one whole, with separators."""
    if abs(value) >= 10.0**digits:
        return f"{value:{sign},.0f}"
    return f"{value:{sign}.{digits}g}"


def with_digits(value: float, digits: int, sign: str = "") -> str:
    """A number with `digits` after the point; a small one keeps two significant digits, a large one gets separators."""
    if value and abs(value) < 0.5 * 10.0**-digits:
        return f"{value:{sign}.1e}"
    return f"{value:{sign},.{digits}f}"


def page_data(inputs: ReportInputs) -> dict[str, Any]:
    """The variables of the templates."""
    metrics = inputs.metrics()
    cards = inputs.cards
    reference = {name: baseline_of(name, cards) for name in cards}
    first = next(iter(cards.values()))
    groups = seed_groups(cards, metrics)
    estimates = estimates_of_variants(groups, metrics, inputs.standard_errors())
    shown_metrics = [metric for metric in columns(inputs.results) if all(metric.key in of for of in metrics.values())]
    headlines = headline_columns(inputs)
    shown = shown_in_full(cards)
    common, own = shared_and_own({name: all_settings(card) for name, card in cards.items()})
    return {
        "question": QUESTION,
        "lead": lead(inputs),
        "title": title(inputs),
        "worlds": world_tables(inputs),
        "found_cosine": found_cosine(inputs),
        "key_numbers": key_numbers(inputs),
        "style": (_FOLDER / "page.css").read_text(),
        "first": first,
        "findings": findings(inputs),
        "metrics": shown_metrics,
        "headlines": headlines,
        "headline_rows": {name: cells(headlines, name, estimates, reference) for name in cards},
        "tables": benchmark_tables(inputs, estimates, reference),
        "same_within": f"{SAME_WITHIN:.0%}",
        "sure": f"{SURE:g}",
        "rows": [_row(index, name, estimates, reference[name], shown_metrics) for index, name in enumerate(cards)],
        "seed_groups": groups if any(len(group.seeds) > 1 for group in groups) else [],
        "shown": "" if len(shown) == len(cards) else listed(shown),
        "figure_groups": all_figures(inputs, shown),
        "shared_latents": shared_latents({name: inputs.decoders[name] for name in shown}),
        "chance_match": chance_best_match(first.d_sae, first.d_model),
        "settings": settings_table(own),
        "common_settings": sorted(flat(common).items()),
        "training_facts": training_facts(inputs),
        "data_facts": data_facts(inputs),
        "references": reference_tables(
            [] if inputs.manifest.spec.is_synthetic else inputs.references,  # of language models
            inputs.results,
            {name: cards[name] for name in shown},
            model=inputs.manifest.spec.model,
        ),
        "has_latents": "latents" in inputs.results,
        "not_run": [(BENCHMARKS[name], why) for name, why in inputs.not_run.items()],
        "digests": [(name, card.weights_sha256) for name, card in cards.items()],
    }


def title(inputs: ReportInputs) -> str:
    """Of the page."""
    first = next(iter(inputs.cards.values()))
    return f"{len(inputs.cards)} SAE variants on {first.model.name}, {first.hook}"


def lead(inputs: ReportInputs) -> str:
    """One sentence that says what the page is about."""
    spec = inputs.manifest.spec
    first = next(iter(inputs.cards.values()))
    sizes = sorted({card.d_sae for card in inputs.cards.values()})
    kinds = dict.fromkeys(card.architecture for card in inputs.cards.values())
    hooks = list(dict.fromkeys(card.hook for card in inputs.cards.values()))
    if spec.is_synthetic:
        return (
            f"{len(inputs.cards)} sparse autoencoders ({', '.join(kinds)}) of "
            f"{listed([f'{size:,}' for size in sizes])} latents, trained on the same batches of activations that were "
            f"made from known features ({listed(hooks)}; {first.d_model} channels), and measured on samples that they "
            "never saw. No language model is involved."
        )
    return (
        f"{len(inputs.cards)} sparse autoencoders ({', '.join(kinds)}) of {listed([f'{size:,}' for size in sizes])} "
        f"latents, trained on the same batches of "
        f"activations of {spec.model.name} at {listed(hooks)} ({first.d_model} channels), and measured on text that "
        "they never saw."
    )


def key_numbers(inputs: ReportInputs) -> list[tuple[str, str]]:
    """The few numbers under the title."""
    metrics = inputs.metrics()
    name = BASELINE if BASELINE in metrics else next(iter(metrics))
    cards = inputs.cards.values()
    return [
        ("Variants", str(len(metrics))),
        ("Seeds", str(len({card.seed for card in cards}))),
        ("Rows trained on", f"{max(card.num_training_rows for card in cards):,}"),
        *(
            (f"{name}: {label}", f"{metrics[name][key]:.{digits}f}")
            for key, label, digits in _KEY_METRICS
            if key in metrics[name]
        ),
    ]


def _row(
    index: int,
    name: str,
    estimates: Mapping[str, Mapping[str, Estimate]],
    other: str | None,
    shown: Collection[Metric],
) -> dict[str, Any]:
    row = table_row(estimates[name], None if other in (None, name) else estimates[str(other)], shown)
    return {"name": name, "colour": series_class(index), "reference": other, "cells": row}


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
