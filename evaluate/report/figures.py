"""Which figures the report has, with their titles, captions and what a screen reader says instead."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from evaluate.compare.frontiers import frontiers
from evaluate.compare.seeds import seed_groups
from evaluate.compare.treatments import MOST_SHOWN, families
from evaluate.report.findings import number
from evaluate.report.inputs import ReportInputs
from evaluate.report.plots import Curve, Track, cosine_histograms, log_series, over_training, scatter, strips, tracks
from evaluate.report.svg import NUM_COLOURS, series_class
from evaluate.report.text import is_learned, regularization
from store.sae.stationary_lambda import stationary_lambda


@dataclass(frozen=True)
class Figure:
    """One drawing with its words."""

    title: str
    caption: str
    svg: Markup
    legend: tuple[tuple[str, str], ...] = ()
    """(style-sheet class, variant), for figures whose lines carry no names."""
    dashed: str = ""
    """What a dashed line means."""


@dataclass(frozen=True)
class FigureGroup:
    """Figures under one heading."""

    title: str
    figures: tuple[Figure, ...]


def all_figures(inputs: ReportInputs, shown: Sequence[str]) -> list[FigureGroup]:
    """The figures in reading order. Those that have a line or strip per variant have the variants `shown` alone."""
    has_core, has_geometry = "core" in inputs.results, "geometry" in inputs.results
    trade_off = _trade_off(inputs) if has_core else ()
    inputs = inputs.only(shown)
    geometry = (_penalty(inputs), _excess(inputs)) if has_geometry else ()
    cosines = (_cosines(inputs), _max_cosines(inputs)) if has_geometry else ()
    firing = (_firing(inputs),) if has_core else ()
    groups = [
        FigureGroup("Quality against sparsity", trade_off),
        FigureGroup("The penalty over training", (_lambda(inputs), *geometry, _nearest(inputs))),
        FigureGroup("The latents", (*cosines, *firing, _training_l0(inputs))),
    ]
    return [group for group in groups if group.figures]


def _legend(inputs: ReportInputs) -> tuple[tuple[str, str], ...]:
    return tuple((series_class(index), name) for index, name in enumerate(inputs.cards))


def _trade_off(inputs: ReportInputs) -> tuple[Figure, ...]:
    variance = _against_l0(
        inputs,
        "core/explained_variance",
        "explained variance",
        "Up and to the left is better. More latents per row alone move a variant up and to the right.",
    )
    if inputs.manifest.spec.is_synthetic:
        return (variance,)
    recovered = _against_l0(
        inputs,
        "core/ce_loss_score",
        "CE recovered",
        "The same for the loss of the language model when it runs on the reconstruction.",
    )
    return (variance, recovered)


def _against_l0(inputs: ReportInputs, key: str, label: str, caption: str) -> Figure:
    metrics = inputs.metrics()
    title, description = f"{label[0].upper()}{label[1:]} against L0", f"{label} against L0 for {', '.join(metrics)}"
    if len(metrics) <= MOST_SHOWN and not frontiers(inputs.cards):
        dots = {name: (values["core/l0"], values[key]) for name, values in metrics.items()}
        drawn = scatter(dots, x_label="L0", y_label=label, description=description)
        return Figure(title, caption, Markup(drawn))
    drawn_families, legend, dashed = [], [], ""
    for index, (name, members) in enumerate(families(inputs.cards).items()):
        groups = seed_groups({member: inputs.cards[member] for member in members}, metrics)
        points = [(group.spreads["core/l0"].mean, group.spreads[key].mean, group.variants[0]) for group in groups]
        drawn_families.append(Track(points, index, dashed=index >= NUM_COLOURS))
        dashed = "the second family of a colour" if index >= NUM_COLOURS else dashed
        legend.append((series_class(index), name))
    drawn = tracks(drawn_families, x_label="L0", y_label=label, description=description)
    caption += " A dot is a mean over seeds; a line joins the sparsities of one treatment."
    return Figure(title, caption, Markup(drawn), tuple(legend), dashed)


def _lambda(inputs: ReportInputs) -> Figure:
    curves, zero = [], []
    for colour, (name, log) in enumerate(inputs.logs.items()):
        steps, values = log_series(log, "lambda")
        if not any(values):
            zero.append(name)
            continue
        curves.append(Curve(steps, values, colour))
        card = inputs.cards[name]
        if is_learned(card):
            steps, penalties = log_series(log, "scaled_penalty")
            stationary = [stationary_lambda(penalty, regularization(card)) for penalty in penalties]
            curves.append(Curve(steps, stationary, colour, dashed=True))
    caption = "A learned lambda moves towards its dashed curve, the solution of lambda * P = -2 c log(lambda)."
    if zero:
        caption += f" Lambda is always 0 in {', '.join(zero)}, which a logarithmic axis cannot show."
    return Figure(
        "Lambda",
        caption,
        Markup(over_training(curves, y_label="lambda", description="lambda of every variant over training", log=True)),
        _legend(inputs),
        "the stationary value of the learned lambda, from P at that step",
    )


def _penalty(inputs: ReportInputs) -> Figure:
    curves = [Curve(*log_series(log, "penalty"), colour) for colour, log in enumerate(inputs.logs.values())]
    bounds = _bounds(inputs)
    positive = [bound for bound in bounds if bound > 0]
    caption = "P = ||G - I||^2 over decoder directions, starting from the same decoder for every variant of one seed."
    if not positive:
        caption += " Its lower bound is 0: there are no more latents than dimensions."
    return Figure(
        "P and its lower bound",
        caption,
        Markup(
            over_training(
                curves,
                y_label="P",
                description="the penalty P of every variant over training, with its lower bound",
                log=True,
                bounds=[(bound, f"lower bound {number(bound)}") for bound in positive],
            )
        ),
        _legend(inputs),
    )


def _excess(inputs: ReportInputs) -> Figure:
    curves = []
    for colour, (name, log) in enumerate(inputs.logs.items()):
        steps, values = log_series(log, "penalty")
        bound = inputs.results["geometry"][name].metrics["lower_bound"]
        curves.append(Curve(steps, [max(value - bound, 0.0) for value in values], colour))
    return Figure(
        "P minus its lower bound",
        "What the penalty could still remove. A straight line on this axis is an exponential fall.",
        Markup(
            over_training(curves, y_label="P - bound", description="P minus its lower bound over training", log=True)
        ),
        _legend(inputs),
    )


def _nearest(inputs: ReportInputs) -> Figure:
    curves = [Curve(*log_series(log, "mean_max_cosine"), colour) for colour, log in enumerate(inputs.logs.values())]
    return Figure(
        "Nearest other latent over training",
        "Mean over latents of the largest cosine with another one. It can still change when P is at its bound.",
        Markup(
            over_training(
                curves,
                y_label="mean max cosine",
                description="mean largest cosine with another latent of every variant over training",
                log=False,
            )
        ),
        _legend(inputs),
    )


def _bounds(inputs: ReportInputs) -> list[float]:
    return sorted({result.metrics["lower_bound"] for result in inputs.results["geometry"].values()})


def _cosines(inputs: ReportInputs) -> Figure:
    histograms = {}
    for name, result in inputs.results["geometry"].items():
        counts = [int(count) for count in result.detail_numbers("histogram_counts")]
        histograms[name] = (result.detail_numbers("histogram_edges"), counts)
    return Figure(
        "Cosines between latents",
        "All pairs of decoder directions. A penalty on cosines narrows the peak. The tails are near-duplicates and "
        "opposites.",
        Markup(cosine_histograms(histograms, description="histogram of pairwise cosines of every variant")),
        _legend(inputs),
    )


def _max_cosines(inputs: ReportInputs) -> Figure:
    samples = {name: result.detail_numbers("max_cosine") for name, result in inputs.results["geometry"].items()}
    return Figure(
        "Nearest other latent",
        "Per latent, the largest cosine with another one. Values near 1 are features that are represented twice.",
        Markup(
            strips(
                samples,
                x_label="largest cosine with another latent",
                description="distribution over latents of the largest cosine with another latent, per variant",
            )
        ),
    )


def _training_l0(inputs: ReportInputs) -> Figure:
    curves = [Curve(*log_series(log, "l0"), colour) for colour, log in enumerate(inputs.logs.values())]
    return Figure(
        "L0 over training",
        "Active latents per training row.",
        Markup(over_training(curves, y_label="L0", description="L0 of every variant over training", log=True)),
        _legend(inputs),
    )


def _firing(inputs: ReportInputs) -> Figure:
    samples: dict[str, list[float]] = {}
    notes: dict[str, str] = {}
    for name, result in inputs.results["core"].items():
        counts = result.detail_numbers("firing_counts")
        num_rows = result.metrics["num_rows"]
        samples[name] = [count / num_rows for count in counts if count]
        notes[name] = f"{len(counts) - len(samples[name])} never"
    return Figure(
        "How often latents fire",
        "Share of held-out rows on which a latent is above zero, for the latents that ever fire. At the right is how "
        "many never do.",
        Markup(
            strips(
                samples,
                x_label="share of rows (logarithmic)",
                description="distribution over latents of firing frequency, per variant",
                log=True,
                notes=notes,
            )
        ),
    )
