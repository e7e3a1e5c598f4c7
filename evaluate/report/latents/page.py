"""Writes reports/latents.html and reports/latents/.

A page that is opened from a disk may not fetch anything, but it may load a script file. So the whole is in files of
`CHUNK` latents that call a function of the page with their data, and the page loads the one that holds the latent it
is asked for. The page itself holds the index of as many variants as fit in half of `PAGE_BYTES`, and in the rest a
sample of latents drawn at random, each with its matches in all other variants. What the page opens with is among them:
it asks for no other file until somebody does.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evaluate.latents.best import priorities
from evaluate.report.latents.neuronpedia import batch
from evaluate.report.latents.numbers import latents_csv, matches_csv, rows
from evaluate.report.latents.records import CHUNK, Vocabulary, detail, index, inline_json
from evaluate.report.latents.view import VariantLatents
from store.atomic import write_bytes
from store.replace import replace_folder

PAGE = "latents.html"
FOLDER = "latents"
PAGE_BYTES = 4 * 2**20
"""The most that the data in the page take."""
_TEMPLATES = Path(__file__).parents[1] / "templates"


@dataclass(frozen=True)
class Embedded:
    """What the page holds itself, as JSON texts."""

    tokens: str
    indexes: dict[int, str]
    """By number of the variant."""
    details: dict[str, str]
    """By "<number of the variant>/<latent>"."""
    first: str | None
    """The latent that the page opens with."""

    @property
    def nbytes(self) -> int:
        """Of the texts."""
        return len(self.tokens) + sum(map(len, self.indexes.values())) + sum(map(len, self.details.values()))


def write(variants: Mapping[str, VariantLatents], output: Path, *, page_bytes: int = PAGE_BYTES) -> Path:
    """Writes the page and the folder into `output`; returns the page's path. The same inputs give the same bytes.

    Args:
        variants: at least one, in the order in which they are shown.
        page_bytes: the most that data in the page take, about.
    """
    unfinished = output / f".{FOLDER}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    write_folder(variants, unfinished)
    replace_folder(unfinished, output / FOLDER)
    embedded = embed(variants, page_bytes)
    size = sum(path.stat().st_size for path in (output / FOLDER).rglob("*") if path.is_file())
    write_bytes(output / PAGE, render(variants, embedded, folder_bytes=size).encode())
    return output / PAGE


def remove(output: Path) -> None:
    """Removes an earlier browser, whose latents the report does not speak of."""
    (output / PAGE).unlink(missing_ok=True)
    shutil.rmtree(output / FOLDER, ignore_errors=True)


def write_folder(variants: Mapping[str, VariantLatents], folder: Path) -> None:
    """The whole, as files: index.js and chunks for the page, batches for other tools, tables."""
    names = list(variants)
    records = []
    for number, latents in enumerate(variants.values()):
        own = folder / latents.folder
        vocabulary = Vocabulary()
        columns = index(latents, vocabulary)
        script = {"variant": number, "tokens": vocabulary.texts(), "columns": columns}
        _write(own / "index.js", f"latentIndex({inline_json(script)});\n")
        for chunk, first in enumerate(range(0, latents.num_latents, CHUNK)):
            numbers = range(first, min(first + CHUNK, latents.num_latents))
            vocabulary = Vocabulary()
            details = {f"{number}/{latent}": detail(latents, latent, vocabulary, names) for latent in numbers}
            pack = {"tokens": vocabulary.texts(), "latents": details}
            _write(own / f"{chunk}.js", f"latentPack({inline_json(pack)});\n")
            _write(own / f"batch-{chunk}.json", _compact(batch(latents, numbers)))
        records += rows(latents)
    _write(folder / "latents.csv", latents_csv(records))
    lines = ",\n".join(json.dumps(record, allow_nan=False) for record in records)
    _write(folder / "latents.json", f"[\n{lines}\n]\n")
    _write(folder / "matches.csv", matches_csv(variants.values()))


def _title(variants: Mapping[str, VariantLatents]) -> str:
    cards = [latents.card for latents in variants.values()]
    sizes = sorted({latents.num_latents for latents in variants.values()})
    hooks = ", ".join(dict.fromkeys(card.hook for card in cards))
    count = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    saes = "one SAE" if len(cards) == 1 else f"{len(cards)} SAEs"
    return f"{count} latents of {saes} on {cards[0].model.name}, {hooks}"


def _text(latents: VariantLatents) -> str:
    return "held-out text" if not latents.num_training else "text, some of which the SAEs were trained on"


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n"


def _write(path: Path, text: str) -> None:
    """A file of a folder that is put in place as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def embed(variants: Mapping[str, VariantLatents], page_bytes: int) -> Embedded:
    """The indexes and latents that the page holds, in at most about `page_bytes`."""
    names = list(variants)
    vocabulary = Vocabulary()
    indexes: dict[int, str] = {}
    used = 0
    for number, latents in enumerate(variants.values()):
        known = len(vocabulary)
        text = inline_json(index(latents, vocabulary))
        needed = len(text) + _nbytes(vocabulary, known)
        if used + needed > page_bytes // 2:
            vocabulary.forget(known)
            break
        indexes[number], used = text, used + needed
    details: dict[str, str] = {}
    first = None
    for group in drawn(variants):
        known = len(vocabulary)
        new = {
            f"{names.index(name)}/{latent}": inline_json(detail(variants[name], latent, vocabulary, names))
            for name, latent in group
            if f"{names.index(name)}/{latent}" not in details
        }
        needed = sum(map(len, new.values())) + _nbytes(vocabulary, known)
        if used + needed > page_bytes:
            vocabulary.forget(known)
            break
        details |= new
        used += needed
        if first is None and variants[group[0][0]].data.num_firing[group[0][1]]:
            first = f"{names.index(group[0][0])}/{group[0][1]}"
    return Embedded(inline_json(vocabulary.texts()), indexes, details, first)


def _nbytes(vocabulary: Vocabulary, known: int) -> int:
    """What the texts behind the first `known` take."""
    return sum(len(inline_json(text)) + 1 for text in vocabulary.texts(known))


def drawn(variants: Mapping[str, VariantLatents]) -> Iterator[list[tuple[str, int]]]:
    """Latents in an order drawn at random, the same in every run, the variants in turn: each with its matches."""
    orders = {
        name: np.argsort(priorities(np.arange(latents.num_latents)), kind="stable").tolist()
        for name, latents in variants.items()
    }
    for turn in count():
        if all(turn >= len(order) for order in orders.values()):
            return
        for name, order in orders.items():
            if turn < len(order):
                latent = order[turn]
                matches = variants[name].matches.items()
                yield [(name, latent), *((other, int(numbers[latent])) for other, (numbers, _) in matches)]


def render(variants: Mapping[str, VariantLatents], embedded: Embedded, *, folder_bytes: int) -> str:
    """The page. Texts are in one JSON island, which the script reads; none is markup."""
    total = sum(latents.num_latents for latents in variants.values())
    any_latents = next(iter(variants.values()))
    facts: dict[str, Any] = {
        "variants": [
            {"name": name, "folder": latents.folder, "count": latents.num_latents, "rows": latents.num_rows}
            for name, latents in variants.items()
        ],
        "folder": FOLDER,
        "chunk": CHUNK,
        "heldOut": any_latents.num_held_out,
        "judges": [latents.judge if latents.explanations else "" for latents in variants.values()],
        "first": embedded.first,
    }
    indexes = ",".join(f'"{number}":{text}' for number, text in embedded.indexes.items())
    details = ",".join(f'"{key}":{text}' for key, text in embedded.details.items())
    data = (
        f'{{"facts":{inline_json(facts)},"tokens":{embedded.tokens},"indexes":{{{indexes}}},"latents":{{{details}}}}}'
    )
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("latents.html.j2").render(
        title=_title(variants),
        text=_text(any_latents),
        style=(_TEMPLATES / "page.css").read_text() + (_TEMPLATES / "latents.css").read_text(),
        script=(_TEMPLATES / "latents.js").read_text(),
        data=data,
        num_embedded=len(embedded.details),
        num_latents=total,
        page_bytes=embedded.nbytes,
        folder_bytes=folder_bytes,
        folder=FOLDER,
        num_rows=any_latents.num_rows,
        num_sequences=any_latents.num_held_out,
        num_top=any_latents.num_top,
        effects="unembed(norm(direction)) - unembed(norm(0))",
    )
