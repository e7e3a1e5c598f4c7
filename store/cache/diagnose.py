"""What a folder without a manifest is, so that the message says what to do about it."""

from pathlib import Path

from store.errors import IncompleteCache, MismatchedCache, StoreError
from store.identity import RESERVED_NAMES

_MAX_NAMES = 5


def why_no_cache(folder: Path) -> StoreError:
    """The error for a folder in which no manifest.json was found."""
    if folder.is_file() or folder.suffix == ".dvc":
        return MismatchedCache(f"expected the folder of an activation cache, got the file {folder}. Name the folder")
    tracked = folder.with_name(f"{folder.name}.dvc").is_file()
    if not folder.is_dir():
        how = f"Run `dvc pull {folder}`" if tracked else "Harvest or pull it first"
        return IncompleteCache(f"expected an activation cache in {folder}, found no such folder. {how}")
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return IncompleteCache(
            f"expected an activation cache in {folder}, found an empty folder. Harvest or pull it first"
        )
    if any(name in RESERVED_NAMES for name in names):
        return IncompleteCache(
            f"expected {folder / 'manifest.json'}, found none: the cache is not finished or only partly pulled. "
            f"Run `dvc repro harvest` to finish it, or `dvc pull {folder}` to fetch it"
        )
    kinds = {
        "dataset_info.json": "a Hugging Face data set",
        "dataset_dict.json": "a Hugging Face data set",
        "state.json": "a Hugging Face data set",
        "zarr.json": "a zarr group of another software",
        ".zgroup": "a zarr 2 group of another software",
        ".zarray": "a zarr 2 array of another software",
        "config.json": "a language model or an SAE",
        "cfg.json": "an SAE",
    }
    kind = next((kind for name, kind in kinds.items() if name in names), "something else")
    listing = ", ".join(names[:_MAX_NAMES]) + (", ..." if len(names) > _MAX_NAMES else "")
    return MismatchedCache(
        f"expected an activation cache in {folder}, found {kind} ({listing}). Name the folder that `harvest` wrote"
    )
