"""Data sets of a hub, fetched once and kept, and in words what stands in the way where they cannot be fetched."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from evaluate.benchmarks.benchmark import NotMeasurable
from evaluate.kept import KeptSetUps
from language_model.hub import asking_hub

ROWS_FILE = "rows.jsonl"
_TIMEOUT_SECONDS = 10


def keep_files(kept: KeptSetUps, benchmark: str, *, dataset: str, revision: str, names: Sequence[str]) -> Path:
    """The folder with these files of a data set, by its commit.

    Raises:
        NotMeasurable: the hub cannot be reached, or does not give them.
    """
    import huggingface_hub

    inputs: dict[str, JsonValue] = {"dataset": dataset, "revision": revision, "files": [*sorted(names)]}
    with kept.open(f"{benchmark}-data", inputs) as set_up:
        if not set_up.is_complete:
            with explained(dataset):
                for name in names:
                    huggingface_hub.hf_hub_download(
                        dataset, name, repo_type="dataset", revision=revision, local_dir=set_up.path,
                        etag_timeout=_TIMEOUT_SECONDS,
                    )  # fmt: skip
            set_up.finish()
        return set_up.path


def keep_rows(
    kept: KeptSetUps, benchmark: str, *, dataset: str, name: str, revision: str, split: str, columns: Sequence[str]
) -> Path:
    """The folder with these columns of a split, a JSON object per line in `ROWS_FILE`.

    Raises:
        NotMeasurable: the hub cannot be reached, or does not give them.
    """
    import datasets

    wanted = {"dataset": dataset, "name": name, "revision": revision, "split": split}
    with kept.open(f"{benchmark}-data", {**wanted, "columns": list(columns)}) as set_up:
        if not set_up.is_complete:
            with explained(f"{dataset} ({name})"):
                found = datasets.load_dataset(dataset, name, split=split, revision=revision, trust_remote_code=False)
                rows = found.select_columns(list(columns))
            with (set_up.path / ROWS_FILE).open("w") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
            set_up.finish()
        return set_up.path


def kept_rows(folder: Path) -> list[dict[str, Any]]:
    """What `keep_rows` kept."""
    return [json.loads(line) for line in (folder / ROWS_FILE).read_text().splitlines()]


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Inside, errors of the hub's libraries as reasons for not running."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        with asking_hub():
            yield
    except (GatedRepoError, DatasetNotFoundError) as error:
        if "gated" not in str(error).lower():
            raise NotMeasurable(
                f"The hub has no data set {what}, or does not show it without a token.",
                "Look it up there, and give the token of an account that may read it in HF_TOKEN.",
            ) from error
        raise NotMeasurable(
            f"The data set {what} is gated: its terms are not accepted, or no token was given.",
            "Accept its terms on its hub page, and give the token of that account in HF_TOKEN.",
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise NotMeasurable(
            f"The hub has no data set {what} of this revision, or does not show it without a token.",
            "Look it up there, and give the token of an account that may read it in HF_TOKEN.",
        ) from error
    except LocalEntryNotFoundError as error:
        raise NotMeasurable(*_unreachable(what, error)) from error
    except EntryNotFoundError as error:
        raise NotMeasurable(
            f"The data set {what} on the hub lacks a file that sae-bench reads.", "Name another revision of it."
        ) from error
    except (HfHubHTTPError, ConnectionError, OSError) as error:
        raise NotMeasurable(*_unreachable(what, error)) from error


def _unreachable(what: str, error: Exception) -> tuple[str, str]:
    return (
        f"The data set {what} is not on this machine, and the hub could not be reached ({type(error).__name__}).",
        "Run this once where the hub is within reach; what it fetches is kept in data/.evaluation.",
    )
