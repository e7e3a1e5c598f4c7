"""Reads HTML strictly: what a browser would forgive is an assertion error here."""

import re
from html import unescape
from html.parser import HTMLParser
from typing import Self

VOID = {"meta", "link", "br", "img", "hr", "input"}
LOADING = {"script", "link", "img", "iframe", "object", "embed", "base", "audio", "video", "source", "use", "image"}
ADDRESSES = {"src", "srcset", "href", "xlink:href", "data", "action", "poster", "background"}


class Page(HTMLParser):
    """An HTML page or a part of one, with what tests ask about."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)  # so that what is not escaped can be told from what is
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.headings: list[str] = []
        self.labels: list[str | None] = []
        self.text = ""

    @classmethod
    def checked(cls, source: str) -> Self:
        """Asserts: tags closed in order, ids unique and present where referred to, all escaped, nothing loaded."""
        page = cls()
        page.feed(source)
        page.close()
        assert page.open == [], f"never closed: {page.open}"
        assert len(page.ids) == len(set(page.ids)), f"ids that are not unique: {page.ids}"
        assert set(page.references) <= set(page.ids), f"labelled by ids that are not there: {page.references}"
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._check_start(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
            if tag in ("h1", "h2", "h3", "h4"):
                self.headings.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._check_start(tag, attrs)

    def _check_start(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        written, attributes = self.get_starttag_text(), dict(attrs)
        assert written is not None
        assert "<" not in written[1:], f"not escaped or not closed: {written}"
        assert len(attributes) == len(attrs), f"an attribute twice: {written}"
        assert tag not in LOADING, f"loads something: {written}"
        addresses = {name: attributes[name] for name in ADDRESSES & attributes.keys()}
        inside = tag == "a" and re.fullmatch(r"#[\w-]+|[\w-]+\.(csv|json|html)(#[\w/-]*)?", addresses.get("href") or "")
        assert not addresses or (set(addresses) == {"href"} and inside), f"refers to something elsewhere: {written}"
        assert not [name for name in attributes if name.startswith("on")], f"runs something: {written}"
        assert "url(" not in (attributes.get("style") or ""), f"loads something: {written}"
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.references += (attributes.get("aria-labelledby") or "").split()
        if tag == "svg":
            self.labels.append(attributes.get("aria-label"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> is out of order"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["style"]:
            assert not re.search(r"url\(|@import", data), "the style sheet loads something"
            return
        assert not set(data) & set("<>&"), f"not escaped: {data}"
        self._add(data)

    def handle_entityref(self, name: str) -> None:
        assert unescape(f"&{name};") != f"&{name};", f"no entity: &{name};"
        self._add(unescape(f"&{name};"))

    def handle_charref(self, name: str) -> None:
        self._add(unescape(f"&#{name};"))

    def _add(self, text: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2", "h3", "h4"):
            self.headings[-1] += text
        self.text += text
