"""Which variants need not be trained: the search for SAEs that carry the key of all that decides a variant.

A key holds no name, so that a renamed variant is found too: its weights and log are the same files, its card and
configuration are written anew with the new name.
"""

import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from store.atomic import link_or_copy, read_json, write_json
from store.errors import StoreError
from store.sae.artefact import CARD_FILE, LOG_FILE, SAELENS_FILE, WEIGHTS_FILE, load_sae
from train.variants import ResolvedVariant

_FILES = (CARD_FILE, LOG_FILE, SAELENS_FILE, WEIGHTS_FILE)


def take_earlier(
    variants: Sequence[ResolvedVariant], earlier: Iterable[Mapping[str, Path]], *, folder: Path
) -> list[ResolvedVariant]:
    """Puts every variant that an earlier output holds into `folder`/<name>; the variants that are left to train.

    `earlier`: versions of an output, newest first, each as {"<name>/<file>": path}.
    """
    missing = {variant.name: variant for variant in variants}
    for files, key in _artefacts(earlier):
        for variant in [candidate for candidate in missing.values() if candidate.key == key]:
            if take(files, variant, folder / variant.name):
                del missing[variant.name]
        if not missing:
            break
    return list(missing.values())


def _artefacts(earlier: Iterable[Mapping[str, Path]]) -> Iterator[tuple[dict[str, Path], str]]:
    """Every whole artefact of every version once, as {file: path}, with its key."""
    seen: set[Path] = set()
    for version in earlier:
        for name, card in version.items():
            if PurePosixPath(name).name != CARD_FILE or card in seen:
                continue
            seen.add(card)
            folder = PurePosixPath(name).parent
            files = {file: version.get(str(folder / file)) for file in _FILES}
            whole = {file: path for file, path in files.items() if path is not None}
            key = _key_in(card)
            if key is not None and len(whole) == len(_FILES):
                yield whole, key


def _key_in(card: Path) -> str | None:
    try:
        found = read_json(card)
    except (StoreError, FileNotFoundError):
        return None
    key = found.get("key") if isinstance(found, dict) else None
    return key if isinstance(key, str) else None


def take(files: Mapping[str, Path], variant: ResolvedVariant, folder: Path) -> bool:
    """Puts a finished SAE into `folder` under the variant's name; False, and no folder, where it is damaged.

    Linked where nothing changes, so that unchanged files are the same files; card and configuration name the variant.
    """
    try:
        for name in (LOG_FILE, WEIGHTS_FILE):
            link_or_copy(files[name], folder / name)
        card, config = read_json(files[CARD_FILE]), read_json(files[SAELENS_FILE])
        if card["name"] == variant.name:
            link_or_copy(files[SAELENS_FILE], folder / SAELENS_FILE)
            link_or_copy(files[CARD_FILE], folder / CARD_FILE)
        else:
            config["metadata"]["variant"] = variant.name
            write_json(folder / SAELENS_FILE, config)
            write_json(folder / CARD_FILE, {**card, "name": variant.name})
        load_sae(folder)
    except (StoreError, FileNotFoundError, LookupError, TypeError) as error:
        print(f"train: {variant.name} of an earlier run cannot be reused ({error})", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        return False
    return True
