"""Latents under the names that Neuronpedia and SAEDashboard use for features, so that their tools can read them.

What the names mean here: `frac_nonzero` is the density; the bars of `freq_hist_data` are those of activations above
zero, each at the middle of its bin; `pos_str` and `neg_str` are the tokens at both ends of logit_effects.py; an
activation with `bin_contains` 0.1 comes from that tenth of the sampled firings, from `bin_min` to `bin_max`; one with
bin_min -1 is of the largest. Fields that nothing here fills, such as neuron alignment, are left out.
"""

from typing import Any

import numpy as np

from evaluate.latents.collect import NUM_QUANTILES
from evaluate.report.latents.records import rounded
from evaluate.report.latents.view import VariantLatents
from language_model.hooks import parse_hook


def batch(latents: VariantLatents, numbers: range) -> dict[str, Any]:
    """A file of features."""
    card = latents.card
    return {
        "model_id": card.model.name,
        "layer": parse_hook(card.hook).layer,
        "hook_name": card.hook,
        "sae_set": latents.name,
        "num_rows": latents.num_rows,
        "features": [feature(latents, number) for number in numbers],
    }


def feature(latents: VariantLatents, number: int) -> dict[str, Any]:
    """One latent."""
    data = latents.data
    used = np.flatnonzero(data.bin_counts[number])
    bars = np.arange(used[-1] + 1 if len(used) else 0)
    nearest = latents.nearest(number)
    said = latents.explanations.get(number)
    found = {
        "feature_index": number,
        "index": str(number),
        "frac_nonzero": float(latents.density[number]),
        "maxActApprox": float(data.largest[number]),
        "pos_str": [latents.spelling[id_] for id_ in data.raised[number].tolist()],
        "pos_values": rounded(data.raised_by[number]),
        "neg_str": [latents.spelling[id_] for id_ in data.lowered[number].tolist()],
        "neg_values": rounded(data.lowered_by[number]),
        "freq_hist_data_bar_values": ((bars + 0.5) * data.bin_width[number]).tolist(),
        "freq_hist_data_bar_heights": data.bin_counts[number, : len(bars)].tolist(),
        "topkCosSimIndices": [other for other, _ in nearest],
        "topkCosSimValues": [round(cosine, 4) for _, cosine in nearest],
        "activations": [
            activation for slot in range(data.places.shape[1]) if (activation := _activation(latents, number, slot))
        ],
    }
    if said is not None:
        found["explanations"] = [{"description": said.text, "score": said.score, "explanationModelName": latents.judge}]
    return found


def _activation(latents: VariantLatents, number: int, slot: int) -> dict[str, Any] | None:
    data = latents.data
    place = int(data.places[number, slot])
    if place < 0:
        return None
    tokens = data.tokens[number, slot]
    inside = np.flatnonzero(tokens >= 0)
    values = data.windows[number, slot, inside]
    peak = int(values.argmax())
    quantile = (slot - latents.num_top) // max(1, (data.places.shape[1] - latents.num_top) // NUM_QUANTILES)
    low, high = (-1.0, -1.0) if slot < latents.num_top else data.quantile_ranges[number, quantile].tolist()
    sequence, position = divmod(place, latents.context_length)
    return {
        "tokens": [latents.spelling[id_] for id_ in tokens[inside].tolist()],
        "values": rounded(values),
        "maxValue": rounded(values[peak]),
        "maxValueTokenIndex": peak,
        "qualifying_token_index": int(latents.before - inside[0]),
        "bin_min": rounded(low),
        "bin_max": rounded(high),
        "bin_contains": 0 if slot < latents.num_top else 1 / NUM_QUANTILES,
        "dataIndex": f"{sequence}:{position}",
    }
