"""A hub data set as a stream of texts. Slow to import, and of no use to other sources.

`datasets` finds the files of a split, their order and their types. Parquet files are read here: its own reader has
threads that read ahead through Python files and outlive a stream that is left before its end, as a harvest leaves it
when it has enough. Such a thread aborts (SIGABRT) or hangs the process when the interpreter ends.
"""

import functools
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import datasets
import httpx2
import pyarrow
import pyarrow.parquet
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.utils.file_utils import xopen

from harvest.files import BadText
from harvest.formats import column_text, fits
from harvest.text_config import HubText
from language_model.hub import asking_hub, hub_problem
from store.machine import explain, is_of_this_machine

_BATCH_ROWS = 1024
_NOT_REACHED = "LocalEntryNotFoundError"
"""Stands in what `datasets` says where the hub did not answer and nothing is in its local cache."""
_LAYER = re.compile(r"\b\w+(Error|Exception|Enabled): | *\(\w+(Error|Exception|Enabled)\)$")
"""Names of the libraries' layers, which say nothing to a person."""


def hub_texts(config: HubText) -> Iterator[str | None]:
    """The documents of a split, in order; None for each that the filter leaves out. Raises BadText."""
    if Path(config.dataset).exists():
        # `datasets` would prefer the folder, and the lineage would then name a text that was never read.
        raise BadText(
            f"expected the hub data set {config.dataset!r}, but a local file or folder has that name. Run from "
            "another folder, or use local files (kind: files)"
        )
    number = 0
    chosen = config.filter
    try:
        for record in hub_records(config):
            number += 1
            where = f"{config.dataset} ({config.split}), row {number}"
            text = column_text(record, config.column, {} if chosen is None else chosen.columns, where=where)
            yield text if text is not None and fits(text, chosen) else None
    except BadText:
        raise
    except (
        OSError,
        ValueError,
        TypeError,  # of a column that cannot be cast to what the data set says it is
        httpx2.HTTPError,
        aiohttp.ClientError,
        datasets.exceptions.DatasetsError,
        pyarrow.ArrowException,
    ) as error:
        if isinstance(error, OSError) and is_of_this_machine(error):  # such as a full disk
            raise explain(error, f"read the hub data set {config.dataset!r}") from error
        raise BadText(_explained(config, error, number)) from error
    if number == 0:
        raise BadText(f"expected documents in {config.dataset!r}, split {config.split!r}, found none. Choose another")


def _explained(config: HubText, error: Exception, number: int) -> str:
    """What could not be read, why, and what to do, without the names of the layers that it went through."""
    what = (
        f"could not read the hub data set {config.dataset!r} at {config.revision[:12]}, split {config.split!r}, "
        f"configuration {config.config!r}" + (f", after {number} documents" if number else "")
    )
    lines = str(error).strip().splitlines()
    unreachable = isinstance(
        error, (ConnectionError, TimeoutError, httpx2.TransportError, aiohttp.ClientConnectionError)
    )
    if unreachable or _NOT_REACHED in str(error):
        reason = hub_problem(error)
    else:
        reason = _LAYER.sub("", lines[0]).rstrip(".") if lines else ""
    return (
        f"{what}: {reason or 'no reason was given'}. Check the names in harvest.text, that the hub can be reached from "
        "here, or that the data set is in its local cache (HF_HOME), and, for a gated one, that you are logged in "
        "(hf auth login). Local files (kind: files) need no hub"
    )


def hub_records(config: HubText) -> Iterable[dict[str, Any]]:
    """The records of the split in order, as `datasets` gives them; nothing runs on once a reader leaves.

    Raises what `datasets` raises.
    """
    with asking_hub():
        builder = datasets.load_dataset_builder(
            config.dataset, name=config.config, revision=config.revision, trust_remote_code=False
        )
    if isinstance(builder, Parquet):
        if builder.config.filters is not None:
            raise ValueError("expected a configuration that reads all rows, found one with filters. Choose another")
        builder._generate_tables = functools.partial(_parquet_tables, builder)
    records: Iterable[dict[str, Any]] = builder.as_streaming_dataset(split=config.split)
    return records


def _parquet_tables(builder: Parquet, files: Iterable[Iterable[str]]) -> Iterator[tuple[str, pyarrow.Table]]:
    """What `builder` yields for these files, (key, rows), every byte read by the thread that asks for the rows."""
    for file_index, path in enumerate(itertools.chain.from_iterable(files)):
        # Without `pre_buffer` and `use_threads` Arrow starts nothing that reads on its own.
        with xopen(path, "rb") as source, pyarrow.parquet.ParquetFile(source, pre_buffer=False) as file:
            batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=builder.config.columns, use_threads=False)
            for batch_index, batch in enumerate(batches):
                yield f"{file_index}_{batch_index}", builder._cast_table(pyarrow.Table.from_batches([batch]))
