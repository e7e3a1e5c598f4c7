"""The strict reader of HTML refuses what it is there to refuse."""

import pytest

from tests.evaluate.report.html_page import Page


def test_a_page_that_is_right_is_read() -> None:
    page = Page.checked('<h2 id="a">x &lt; y &amp; z</h2><section aria-labelledby="a"><br>&#39;</section>')
    assert page.headings == ["x < y & z"]
    assert page.text == "x < y & z'"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("<p><b>x</p></b>", "</p> is out of order"),
        ("<p>x", "never closed"),
        ("x</p>", "</p> closes nothing"),
        ('<p id="a">x</p><p id="a">y</p>', "ids that are not unique"),
        ('<p aria-labelledby="b">x</p>', "labelled by ids that are not there"),
        ("<p>a & b</p>", "not escaped"),
        ("<p>a > b</p>", "not escaped"),
        ("<p>a < b</p>", "not escaped"),
        ('<p title="<b>">x</p>', "not escaped"),
        ("<script>x</script>", "loads something"),
        ('<img src="x.png">', "loads something"),
        ('<a href="https://example.org">x</a>', "refers to something"),
        ('<p onclick="x()">x</p>', "runs something"),
        ('<p style="background: url(x.png)">x</p>', "loads something"),
        ("<style>@import 'x.css';</style>", "the style sheet loads something"),
    ],
)
def test_a_page_that_is_wrong_is_refused(source: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        Page.checked(source)
