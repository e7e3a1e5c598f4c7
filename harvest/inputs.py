"""What a harvest reads, found, checked and identified: a language model and a text, or features that are known."""

from dataclasses import dataclass
from pathlib import Path

from compute.code_version import tell_if_edited
from harvest.config import HarvestConfig
from harvest.estimate import check_model_fits, check_shard
from harvest.synthetic import synthetic_spec
from harvest.text import TextSource, open_text
from harvest.tokens import packing_of
from harvest.version import HARVEST_VERSION
from language_model.checkpoint import model_family
from language_model.config import LanguageModelConfig
from language_model.load import identify, resolve
from store.cache.spec import CacheSpec, position_names


@dataclass(frozen=True)
class Inputs:
    """A language model, a text, and the spec of the cache that they give; with known features there are no such two."""

    model_folder: Path | None
    text: TextSource | None
    spec: CacheSpec


def open_inputs(config: HarvestConfig, model: LanguageModelConfig | None) -> Inputs:
    """Finds the language model and the text. Raises ValueError, with what to do, for one that cannot be used.

    Where rows are made from known features, their directions are made here.
    """
    if config.synthetic is not None:
        check_shard(config, d_model=config.synthetic.d_model)
        return Inputs(model_folder=None, text=None, spec=synthetic_spec(config))
    if model is None or config.text is None or config.held_out_fraction is None:
        raise ValueError("expected a language_model and a harvest.text, as harvest.synthetic is null. Give both")
    folder = resolve(model.name, model.revision)
    identity = identify(folder, model.name, model.revision)
    check_model_fits(config, identity, folder=folder)
    sequences_per_chunk, chunks_per_shard = config.chunking(d_model=identity.d_model)
    text = open_text(config.text)
    # Code that was edited since its version was confirmed is part of what decides the bytes, so that no shard of other
    # code is taken for one of this code.
    tell_if_edited(HARVEST_VERSION, stage="harvest", where="harvest/version.py")
    edited = HARVEST_VERSION.edited()
    spec = CacheSpec(
        model=identity,
        hooks=config.hooks,
        text=text.lineage if edited is None else {**text.lineage, "edited_harvest_code": edited},
        context_length=config.context_length,
        excluded_positions=position_names(config.num_positions_left_out, first_token=config.first_token),
        packing=packing_of(config.separator, first_token=config.first_token),
        held_out_fraction=config.held_out_fraction,
        compute_dtype=model.compute_dtype,
        forward_batch_sequences=config.forward_batch_sequences,
        sequences_per_chunk=sequences_per_chunk,
        chunks_per_shard=chunks_per_shard,
        codec=config.codec,
        harvest_version=HARVEST_VERSION.number,
        first_token=config.first_token,
        not_finite=config.not_finite,
        attention=model_family(folder).attention,
    )
    return Inputs(model_folder=folder, text=text, spec=spec)
