"""`pipeline.py report`: a self-contained HTML page and a Markdown summary, from files alone, without language model.

The same inputs give the same bytes: no time, no host, no path of this machine.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evaluate.benchmarks.registry import BENCHMARKS
from evaluate.compare.comparisons import HEADLINES, Comparisons, compare, headline_metrics
from evaluate.compare.cost import cost
from evaluate.compare.frontiers import FrontierDifference, compare_frontiers
from evaluate.compare.kinds import kinds_compared
from evaluate.compare.shared_latents import chance_best_match, shared_latents
from evaluate.compare.stability import chance, stability
from evaluate.compare.treatments import BASELINE, MOST_SHOWN, all_settings, shared_and_own, shown_in_full
from evaluate.report.benchmark_tables import benchmark_tables, headline_columns, rows
from evaluate.report.facts import data_facts, flat, settings_table, training_facts
from evaluate.report.figures import all_figures
from evaluate.report.findings import listed
from evaluate.report.inputs import ReportInputs, gather
from evaluate.report.kinds_table import kinds_table
from evaluate.report.latents import page as latents_page
from evaluate.report.latents.view import views
from evaluate.report.metrics import cell, columns
from evaluate.report.numbers import as_csv, numbers
from evaluate.report.recovery import found_cosine, world_tables
from evaluate.report.references import reference_tables
from evaluate.report.spelling import markdown_text, paired, significant, with_digits
from evaluate.report.svg import series_class
from evaluate.report.text import findings
from evaluate.report.verdict import statements
from store.atomic import write_bytes
from store.files.open import Place
from store.record import Record

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
    comparisons = compare(
        inputs.cards, inputs.metrics(), errors=inputs.standard_errors(), without_one=inputs.without_one
    )
    data = page_data(inputs, comparisons)
    page = render("page.html.j2", data)
    summary = render("summary.md.j2", data)
    write_bytes(output / "report.html", page.encode())
    write_bytes(output / "report.md", summary.encode())
    records = numbers(inputs, comparisons)
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
    environment.filters["paired"] = paired
    environment.filters["figures"] = significant
    return environment.get_template(template).render(data)


def page_data(inputs: ReportInputs, comparisons: Comparisons) -> dict[str, Any]:
    """The variables of the templates."""
    metrics = inputs.metrics()
    cards = inputs.cards
    first = next(iter(cards.values()))
    present = {key for values in metrics.values() for key in values}
    kinds = kinds_compared(
        comparisons, cards, metrics, errors=inputs.standard_errors(), without_one=inputs.without_one,
        shown=[key for key in headline_metrics() if key in present],
    )  # fmt: skip
    shown_metrics = [metric for metric in columns(inputs.results) if metric.key in present]
    headlines = headline_columns(inputs)
    shown = shown_in_full(cards)
    common, own = shared_and_own({name: all_settings(card) for name, card in cards.items()})
    several = any(len(group.seeds) > 1 for group in comparisons.groups.values())
    return {
        "question": QUESTION,
        "lead": lead(inputs),
        "title": title(inputs),
        "worlds": world_tables(inputs),
        "found_cosine": found_cosine(inputs),
        "key_numbers": key_numbers(inputs, comparisons),
        "style": (_FOLDER / "page.css").read_text(),
        "first": first,
        "verdict": statements(comparisons, kinds, cards, comparisons.means()),
        "findings": findings(inputs, comparisons),
        "metrics": shown_metrics,
        "headlines": headlines,
        "headline_rows": rows(headlines, comparisons, all_of_them=True),
        "tables": benchmark_tables(inputs, comparisons),
        "num_headline_comparisons": len(comparisons.family(HEADLINES)),
        "kinds": kinds_table(kinds),
        "rows": [
            {
                "name": name,
                "colour": series_class(shown.index(name) if name in shown else index),  # as in the figures
                "reference": comparisons.baseline[name],
                "seeds": group.seeds,
                "cost": cost(cards[name]),
                "cells": {metric.key: cell(comparisons, name, metric.key) for metric in shown_metrics},
            }
            for index, (name, group) in enumerate(comparisons.groups.items())
        ],
        "each": metrics if several else {},
        "errors": inputs.standard_errors(),
        "several_seeds": several,
        "shown": "" if len(shown) == len(cards) else listed(shown),
        "figure_groups": all_figures(inputs, shown),
        "stability": stability(
            comparisons,
            {name: card.seed for name, card in cards.items()},
            inputs.decoders,
            list(comparisons.groups)[:MOST_SHOWN],
        ),
        "chance": chance(first.d_sae, first.d_model) if several else None,
        "frontiers": frontier_rows(inputs),
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


def frontier_rows(inputs: ReportInputs) -> dict[str, list[FrontierDifference]]:
    """By family, explained variance and CE recovered minus the baseline's at the same L0s; nothing without sweeps."""
    if "core" not in inputs.results:
        return {}
    found = compare_frontiers(
        inputs.cards, inputs.metrics(), without_one=inputs.without_one,
        shown=("core/explained_variance", "core/ce_loss_score"),
    )  # fmt: skip
    rows: dict[str, list[FrontierDifference]] = {}
    for item in found:
        rows.setdefault(item.family, []).append(item)
    return rows


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


def key_numbers(inputs: ReportInputs, comparisons: Comparisons) -> list[tuple[str, str]]:
    """The few numbers under the title."""
    means = comparisons.means()
    name = BASELINE if BASELINE in means else next(iter(means))
    cards = inputs.cards.values()
    return [
        ("Treatments", str(len(means))),
        ("Seeds", str(len({card.seed for card in cards}))),
        ("Rows trained on", f"{max(card.num_training_rows for card in cards):,}"),
        *(
            (f"{name}: {label}", f"{means[name][key]:.{digits}f}")
            for key, label, digits in _KEY_METRICS
            if key in means[name]
        ),
    ]
