"""The order of documents, on texts whose lengths can be added up by hand."""

from collections.abc import Callable

import pytest

from harvest import interleave
from harvest.interleave import Document, Documents, numbered, shuffled, shuffled_numbers, take_turns


def stream(part: int, *texts: str | None) -> Callable[[], Documents]:
    return lambda: numbered(part, texts)


def order(*streams: tuple[float, Callable[[], Documents]], at_once: int = 64) -> str:
    return " ".join(document.text for document in take_turns(streams, at_once=at_once))


def test_streams_of_one_weight_give_documents_in_turn_and_the_longer_one_ends_alone() -> None:
    assert order((1.0, stream(0, "a", "b")), (1.0, stream(1, "c", "d", "e", "f"))) == "a c b d e f"


def test_the_stream_with_the_fewest_characters_for_its_weight_is_next() -> None:
    # After "aaaa" the first has 4, the second catches up: 1, 2, 3, 4.
    assert order((1.0, stream(0, "aaaa", "A")), (1.0, stream(1, *"bcdefg"))) == "aaaa b c d e A f g"
    # Weight 2: two characters for each one of the other.
    assert order((2.0, stream(0, *"abcdef")), (1.0, stream(1, *"uvw"))) == "a u b c v d e w f"


def test_a_stream_that_enters_late_is_level_with_the_others_and_has_no_turns_to_make_up() -> None:
    streams = [(1.0, stream(0, *"abcdef")), (1.0, stream(1, "u")), (1.0, stream(2, *"xyz"))]
    assert order(*streams, at_once=2) == "a u b x c y d z e f"


def test_no_more_streams_are_open_than_allowed() -> None:
    open_now, most = 0, 0

    def counted(part: int) -> Documents:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        yield from numbered(part, ["x", "y"])
        open_now -= 1

    streams = ((1.0, lambda part=part: counted(part)) for part in range(100))
    assert len(list(take_turns(streams, at_once=7))) == 200
    assert most == 7


def test_documents_that_a_filter_leaves_out_cost_no_turn() -> None:
    assert order((1.0, stream(0, None, None, "a", "b")), (1.0, stream(1, "u", "v"))).split() == ["a", "u", "b", "v"]


def test_the_last_document_of_a_part_says_how_many_there_are() -> None:
    assert list(numbered(3, ["a", None, ""])) == [
        Document(3, "a"),
        Document(3, "", is_left_out=True),
        Document(3, "", num_documents_of_part=3),
    ]
    assert list(numbered(0, [])) == []


def test_a_shuffle_is_decided_by_its_seed_and_mixes_within_its_windows_only() -> None:
    documents = list(numbered(0, [str(number) for number in range(25)]))

    def texts(seed: int) -> list[int]:
        return [int(document.text) for document in shuffled(documents, seed=seed, window_documents=10)]

    first = texts(0)
    assert first == texts(0) != texts(1)
    for begin, end in ((0, 10), (10, 20), (20, 25)):
        assert sorted(first[begin:end]) == list(range(begin, end)) != first[begin:end]
    assert [n - 10 for n in first[10:20]] != first[:10]  # another order in each window


def test_a_longer_text_only_adds_documents_behind_a_shuffle_of_whole_windows() -> None:
    short, longer = (list(numbered(0, map(str, range(count)))) for count in (20, 30))
    shuffled_short, shuffled_longer = (
        [document.text for document in shuffled(some, seed=3, window_documents=10)] for some in (short, longer)
    )
    assert shuffled_longer[:20] == shuffled_short


def test_a_window_of_long_documents_is_full_by_its_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interleave, "MAX_WINDOW_CHARACTERS", 10)
    num_read = 0

    def endless() -> Documents:
        nonlocal num_read
        while True:
            num_read += 1
            yield Document(0, "x" * 5)

    next(shuffled(endless(), seed=0, window_documents=1000))
    assert num_read == 2


def test_the_order_of_files_is_drawn_for_all_of_them() -> None:
    drawn = shuffled_numbers(50, seed=0)
    assert sorted(drawn) == list(range(50)) != drawn
    assert drawn != shuffled_numbers(50, seed=1)
