"""Names and texts that try to be markup or script."""

import dataclasses
from collections.abc import Mapping

from evaluate.report.latents.view import VariantLatents

HOSTILE_NAME = '</script><img src=x onerror="window.broken=1"> \'/../.. #&%2F\u2028'
HOSTILE_TEXTS = [
    "</script><script>window.broken=1</script>",
    "<!--<script>",
    "<img src=x onerror=window.broken=1>",
    "\u2028\u2029\u202e\x00\x1b",
    "]]>&lt;&#60;\\u003c${window.broken=1}`'\"",
    '=HYPERLINK("http://example.org")',
]


def hostile(latents: Mapping[str, VariantLatents]) -> dict[str, VariantLatents]:
    """The same latents on hostile text, the second of the variants under a hostile name."""
    names = list(latents)
    renamed = {name: HOSTILE_NAME if name == names[1] else name for name in names}

    def spoilt(of_one: VariantLatents) -> VariantLatents:
        ids = sorted(of_one.spelling)
        spelling = {id_: HOSTILE_TEXTS[number % len(HOSTILE_TEXTS)] for number, id_ in enumerate(ids)}
        matches = {renamed[name]: match for name, match in of_one.matches.items()}
        return dataclasses.replace(of_one, name=renamed[of_one.name], spelling=spelling, matches=matches)

    return {renamed[name]: spoilt(of_one) for name, of_one in latents.items()}
