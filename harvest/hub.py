"""A hub data set as a stream of records. Slow to import, and of no use to other sources.

`datasets` finds the files of a split, their order and their types. Parquet files are read here: its own reader has
threads that read ahead through Python files and outlive a stream that is left before its end, as a harvest leaves it
when it has enough. Such a thread aborts (SIGABRT) or hangs the process when the interpreter ends.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.utils.file_utils import xopen

from harvest.config import HubText

_BATCH_ROWS = 1024


def hub_records(config: HubText) -> Iterable[dict[str, Any]]:
    """The records of the split in order, as `datasets` gives them; nothing runs on once a reader leaves.

    Raises what `datasets` raises.
    """
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
