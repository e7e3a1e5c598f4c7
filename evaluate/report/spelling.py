"""Numbers and names as people read them in a page or in Markdown."""

import math
import re


def markdown_text(value: object) -> str:
    """`value` as literal text inside a Markdown paragraph or table cell."""
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", " ".join(str(value).split()))


def significant(value: float, digits: int = 4, sign: str = "") -> str:
    """A number with so many significant digits; a large one whole, with separators."""
    if abs(value) >= 10.0**digits:
        return f"{value:{sign},.0f}"
    return f"{value:{sign}.{digits}g}"


def with_digits(value: float, digits: int, sign: str = "") -> str:
    """A number with `digits` after the point; a small one keeps two significant digits, a large one gets separators."""
    if value and abs(value) < 0.5 * 10.0**-digits:
        return f"{value:{sign}.1e}"
    return f"{value:{sign},.{digits}f}"


def paired(difference: float, half_width: float | None) -> str:
    """A difference +- half its interval, to two digits of that; one without an interval has four digits."""
    if half_width is None:
        return significant(difference, sign="+")
    if half_width == 0.0:
        return f"{significant(difference, sign='+')} +- 0"
    digits = 1 - math.floor(math.log10(half_width))
    if digits > 6:
        return f"{difference:+.2g} +- {half_width:.1g}"
    digits = max(0, digits)
    return f"{difference:+,.{digits}f} +- {half_width:,.{digits}f}"
