"""The report and the latent browser as a person meets them: in a real browser, from a disk, on a desk and a phone."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest

from evaluate.report import page as report
from evaluate.report.inputs import gather
from evaluate.report.latents import page
from evaluate.report.latents.view import Explanation, VariantLatents, views
from tests.evaluate.report.chromium import Tab, open_tab
from tests.evaluate.report.hostile import HOSTILE_NAME, HOSTILE_TEXTS, hostile

pytestmark = pytest.mark.browser

VARIANTS = ["baseline", "fixed-1", "adaptive", "dead"]
LOOKS = [(1280, False), (1280, True), (390, False), (390, True)]
SHOWN = "document.querySelector('#latent h2')?.textContent"
TOP_TEXTS = "[...document.querySelectorAll('#latent > .contexts .text')]"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with open_tab(tmp_path_factory.mktemp("chromium")) as opened:
        opened.show_as(width=1280)
        yield opened


@pytest.fixture(scope="module")
def study_of_four(
    empty_study: SimpleNamespace, six_saes: Path, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """The reports on four SAEs and their latents. Copied, never changed."""
    output = tmp_path_factory.mktemp("reports of four")
    places = {
        "models_folder": six_saes / "models",
        "results_folder": six_saes / "results",
        "cache": six_saes / "data" / "activations",
    }
    report.run(empty_study.config, variants=VARIANTS, output=output, **places)
    latents = views(gather(empty_study.config, variants=VARIANTS, **places), six_saes / "results")
    return SimpleNamespace(reports=output, latents=latents)


@pytest.fixture
def open_page(tab: Tab, study_of_four: SimpleNamespace, tmp_path: Path) -> Callable[..., Path]:
    """Writes a latent browser into a folder of the test's own and opens it; returns its folder."""

    def write_and_open(
        latents: dict[str, VariantLatents] | None = None, *, address: str = "", page_bytes: int = page.PAGE_BYTES
    ) -> Path:
        page.write(latents or study_of_four.latents, tmp_path, page_bytes=page_bytes)
        tab.show_as(width=1280)
        tab.open(f"{(tmp_path / page.PAGE).as_uri()}{address}")
        return tmp_path

    return write_and_open


def press_and_wait(tab: Tab, key: str) -> None:
    """A key that leads to another latent."""
    before = tab.run("location.hash")
    tab.press(key)
    tab.wait_until(f"location.hash !== {json.dumps(before)}")


@pytest.mark.parametrize(("width", "dark"), LOOKS)
@pytest.mark.parametrize("name", ["report.html", "latents.html"])
def test_a_page_opens_without_a_complaint_or_a_request_and_fits_its_window(
    name: str, width: int, dark: bool, tab: Tab, study_of_four: SimpleNamespace
) -> None:
    address = (study_of_four.reports / name).as_uri()
    tab.show_as(width=width, dark=dark)
    tab.open(address)
    assert tab.requests == [address]
    assert tab.complaints == []
    assert not tab.is_wider_than_the_window()
    paper, ink = (tab.run(f"getComputedStyle(document.body).{what}") for what in ("backgroundColor", "color"))
    assert (brightness(paper) < brightness(ink)) == dark


def brightness(colour: str) -> int:
    return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))


@pytest.mark.parametrize("width", [1280, 390])
def test_the_figures_of_the_report_are_drawn_within_the_page(
    width: int, tab: Tab, study_of_four: SimpleNamespace
) -> None:
    tab.show_as(width=width)
    tab.open((study_of_four.reports / "report.html").as_uri())
    boxes = tab.run(
        "[...document.querySelectorAll('figure svg')].map(s => { const b = s.getBoundingClientRect(); "
        "return [b.left, b.right, b.height, s.querySelectorAll('.line, .point, .area, .bar').length]; })"
    )
    assert len(boxes) >= 5
    for left, right, height, marks in boxes:
        assert 0 <= left < right <= width
        assert height > 100
        assert marks > 0
    tab.run("document.querySelector('a[href=\"latents.html\"]').click()")
    tab.wait_until(f"location.pathname.endsWith('latents.html') && document.readyState === 'complete' && {SHOWN}")


def test_search_finds_numbers_and_tokens_and_the_list_is_sorted(
    tab: Tab, open_page: Callable[..., Path], study_of_four: SimpleNamespace
) -> None:
    open_page(address="#baseline")
    listed = "[...document.querySelectorAll('#rows b')].map(b => Number(b.textContent))"
    assert tab.run(listed) == list(range(64))
    tab.run("(() => { sort.value = 'dense'; sort.dispatchEvent(new Event('change')); })()")
    density = study_of_four.latents["baseline"].density
    assert tab.run(listed) == sorted(range(64), key=lambda latent: (-round(density[latent], 4), latent))

    def search(query: str) -> None:
        tab.run(f"(() => {{ query.value = {json.dumps(query)}; query.dispatchEvent(new Event('input')); }})()")

    tab.run("(() => { sort.value = 'number'; sort.dispatchEvent(new Event('change')); })()")
    search("17")
    assert tab.run(listed)[0] == 17
    token = study_of_four.latents["baseline"].peaks(3)[0][0]
    search(token)
    assert 3 in tab.run(listed)
    assert tab.run("document.getElementById('count').textContent").startswith(f"{len(tab.run(listed))} of 64 latents")
    search("no such token anywhere")
    assert tab.run(listed) == []
    assert tab.complaints == []


def test_explanations_are_shown_searched_and_sorted_by_their_score(
    tab: Tab, open_page: Callable[..., Path], study_of_four: SimpleNamespace
) -> None:
    said = {
        5: Explanation("Words about <b>weather</b>", 0.5),
        9: Explanation("numbers", 0.9),
        11: Explanation("x", None),
    }
    latents = study_of_four.latents | {
        "baseline": dataclasses.replace(study_of_four.latents["baseline"], explanations=said, judge="lexical baseline")
    }
    open_page(latents, address="#baseline/5")
    text = tab.run("document.querySelector('.said').textContent")
    assert text == "Words about <b>weather</b> Explained by lexical baseline, score 0.5."
    tab.run("(() => { sort.value = 'good'; sort.dispatchEvent(new Event('change')); })()")
    assert tab.run("[...document.querySelectorAll('#rows b')].slice(0, 3).map(b => b.textContent)") == ["9", "5", "0"]
    tab.run("(() => { query.value = 'WEATHER'; query.dispatchEvent(new Event('input')); })()")
    assert tab.run("[...document.querySelectorAll('#rows b')].map(b => b.textContent)") == ["5"]


def test_an_address_opens_just_that_latent_with_its_matches_side_by_side(
    tab: Tab, open_page: Callable[..., Path], study_of_four: SimpleNamespace
) -> None:
    open_page(address="#fixed-1/7")
    assert tab.run(SHOWN) == "fixed-1 / 7"
    assert tab.run("document.querySelector('#rows a[aria-current]').textContent").startswith("7")
    tab.run("location.hash = '#fixed-1/63'")
    tab.wait_until(f"{SHOWN} === 'fixed-1 / 63'")
    tab.wait_until(
        "(() => { const [a, b] = ['#rows', '#rows [aria-current]'].map(s => document.querySelector(s)"
        ".getBoundingClientRect()); return a.top <= b.top && b.bottom <= a.bottom; })()"
    )
    tab.run("location.hash = '#fixed-1/7'")
    tab.wait_until(f"{SHOWN} === 'fixed-1 / 7'")
    cards = tab.run("[...document.querySelectorAll('.card h4')].map(h => h.textContent)")
    matches = study_of_four.latents["fixed-1"].matches
    assert cards == ["fixed-1 / 7", *(f"{name} / {numbers[7]}" for name, (numbers, _) in matches.items())]
    tab.run("document.querySelectorAll('.card h4 a')[1].click()")
    tab.wait_until(f"{SHOWN} === {json.dumps(cards[1])}")
    assert tab.run("variant.selectedOptions[0].textContent") == "baseline"
    tab.run("history.back()")
    tab.wait_until(f"{SHOWN} === 'fixed-1 / 7'")
    assert tab.complaints == []


def test_a_wrong_address_says_so(tab: Tab, open_page: Callable[..., Path]) -> None:
    open_page(address="#fixed-1/64")
    for address in ("#fixed-1/64", "#nobody/1", "#%E0%A4%A/1", "#fixed-1/1.5"):
        tab.run(f"location.hash = {json.dumps(address)}")
        tab.wait_until("document.getElementById('latent').textContent.includes('There is no latent')")
        tab.run("location.hash = '#fixed-1/1'")
        tab.wait_until(f"{SHOWN} === 'fixed-1 / 1'")
    assert tab.complaints == []


def test_pointing_at_a_token_and_arrow_keys_show_its_activation(
    tab: Tab, open_page: Callable[..., Path], study_of_four: SimpleNamespace
) -> None:
    data = study_of_four.latents["baseline"].data
    latent = int(data.num_firing.argmax())
    open_page(address=f"#baseline/{latent}")
    tab.point_at(f"{TOP_TEXTS}[0].querySelector('.own')")
    tab.wait_until("!document.getElementById('tip').hidden")
    shown = tab.run("document.getElementById('tip').textContent")
    assert f" {float(f'{data.largest[latent]:.3g}'):g} " in shown
    assert tab.run(f"{TOP_TEXTS}[0].querySelectorAll('.fires').length") == (data.windows[latent, 0] > 0).sum()
    tab.point_at("document.querySelector('h1')")
    tab.wait_until("document.getElementById('tip').hidden")

    tab.run(f"{TOP_TEXTS}[1].focus()")
    tab.press("ArrowRight")
    tab.wait_until("!document.getElementById('tip').hidden")
    first = tab.run("document.querySelector('.text .now') === document.activeElement.querySelector('.own')")
    tab.press("ArrowLeft")
    own = f"[...{TOP_TEXTS}[1].children].findIndex(s => s.classList.contains('own'))"
    now = f"[...{TOP_TEXTS}[1].children].findIndex(s => s.classList.contains('now'))"
    assert tab.run(now) == tab.run(own) - (1 if first else 0)
    tab.run("document.activeElement.blur()")
    assert tab.run("document.getElementById('tip').hidden")


def test_keys_lead_through_the_list_and_to_random_latents(
    tab: Tab, open_page: Callable[..., Path], study_of_four: SimpleNamespace
) -> None:
    open_page(address="#baseline/10")
    press_and_wait(tab, "j")
    assert tab.run(SHOWN) == "baseline / 11"
    press_and_wait(tab, "k")
    press_and_wait(tab, "k")
    assert tab.run(SHOWN) == "baseline / 9"
    tab.press("/")
    assert tab.run("document.activeElement.id") == "query"
    tab.press("r")
    assert tab.run("query.value") == "r"  # typed, not a command
    tab.run("query.blur()")
    seen = set()
    for _ in range(12):
        tab.run("document.getElementById('random').click()")
        tab.wait_until("document.title === decodeURIComponent(location.hash.slice(1))")
        seen.add(tab.run(SHOWN))
    assert len(seen) > 3
    firing = study_of_four.latents["baseline"].data.num_firing
    assert all(firing[int(name.rpartition(" ")[2])] > 0 for name in seen)
    tab.run("location.hash = '#dead'")
    tab.wait_until("variant.selectedOptions[0].textContent === 'dead'")
    tab.press("r")
    assert tab.run("location.hash") == "#dead"  # none of its latents fires
    assert tab.complaints == []


def test_what_is_not_in_the_page_comes_from_its_folder_when_it_is_opened_and_is_missed_in_words(
    tab: Tab, open_page: Callable[..., Path]
) -> None:
    folder = open_page(page_bytes=1)
    assert [address for address in tab.requests if not address.endswith(page.PAGE)] == [
        (folder / "latents" / "baseline" / "index.js").as_uri()  # a page of one byte has not even an index
    ]
    tab.run("location.hash = '#adaptive/3'")
    tab.wait_until(f"{SHOWN} === 'adaptive / 3' && document.querySelectorAll('.card .muted').length >= 8")
    assert (folder / "latents" / "adaptive" / "0.js").as_uri() in tab.requests
    assert all(address.startswith("file:///") for address in tab.requests)
    assert tab.complaints == []

    shutil.rmtree(folder / "latents")
    tab.open((folder / page.PAGE).as_uri() + "#adaptive/3")
    tab.wait_until("document.getElementById('latent').textContent.includes('is not beside it')")
    assert "index.js is not beside it" in tab.run("document.getElementById('count').textContent")


def test_a_phone_shows_the_list_or_the_latent(
    tab: Tab, open_page: Callable[..., Path], study_of_four: SimpleNamespace
) -> None:
    open_page(address="#baseline")
    tab.show_as(width=390)
    visible = "['.finder', '#latent'].map(one => getComputedStyle(document.querySelector(one)).display !== 'none')"
    assert tab.run(visible) == [True, False]
    tab.run("document.querySelector('#rows a').click()")
    tab.wait_until(f"{SHOWN} === 'baseline / 0'")
    assert tab.run(visible) == [False, True]
    assert not tab.is_wider_than_the_window()
    tab.run(f"location.hash = '#baseline/{int(study_of_four.latents['baseline'].data.num_firing.argmax())}'")
    tab.wait_until(f"{TOP_TEXTS}.length > 1")
    tab.tap(f"{TOP_TEXTS}[1].querySelector('.own')")
    tab.wait_until("!document.getElementById('tip').hidden")
    assert not tab.is_wider_than_the_window()
    tab.run("document.querySelector('.back').click()")
    tab.wait_until("location.hash === '#baseline'")
    assert tab.run(visible) == [True, False]
    assert not tab.is_wider_than_the_window()


def test_hostile_texts_and_names_are_shown_as_they_are_and_run_nothing(
    tab: Tab, open_page: Callable[..., Path], study_of_four: SimpleNamespace
) -> None:
    for page_bytes in (page.PAGE_BYTES, 1):  # in the page, and in its folder
        folder = open_page(hostile(study_of_four.latents), page_bytes=page_bytes)
        address = f"#{quote(HOSTILE_NAME, safe='')}/7"
        tab.run(f"location.hash = {json.dumps(address)}")
        tab.wait_until("document.querySelectorAll('.card .text').length > 0")
        assert tab.run(SHOWN) == f"{HOSTILE_NAME} / 7"
        shown = tab.run("document.getElementById('latent').textContent")
        for text in (HOSTILE_TEXTS[0], HOSTILE_TEXTS[2], HOSTILE_TEXTS[4]):
            assert text in shown
        tab.wait_until("document.scripts.length === 2")  # the page's own; it removes what it loaded data with
        assert tab.run("[window.broken, document.images.length]") == [None, 0]
        assert all(address.startswith(folder.as_uri()) for address in tab.requests)
        assert tab.complaints == []
        for width in (1280, 390):
            tab.show_as(width=width)
            assert not tab.is_wider_than_the_window()
        tab.show_as(width=1280)


def test_the_browser_under_test_reports_what_it_should(tab: Tab, tmp_path: Path) -> None:
    """The tests above would pass for any page if requests, complaints and widths went unseen."""
    bad = tmp_path / "bad.html"
    bad.write_text("<!DOCTYPE html><p style='width: 3000px'>x</p><img src='gone.png'><script>nothing.here()</script>")
    tab.show_as(width=390)
    tab.open(bad.as_uri())
    assert (tmp_path / "gone.png").as_uri() in tab.requests
    assert any("nothing is not defined" in complaint for complaint in tab.complaints)
    assert tab.is_wider_than_the_window()
