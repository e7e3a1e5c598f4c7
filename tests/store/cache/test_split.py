"""Which documents training never sees."""

from store.cache.split import is_held_out


def test_the_side_of_a_document_is_told_from_its_digest_and_never_changes() -> None:
    # The first 8 bytes of SHA-256 of "held-out", a zero byte and the text: 0.2882 of 2**64 for this text.
    assert not is_held_out("a document", fraction=0.28)
    assert is_held_out("a document", fraction=0.29)


def test_a_larger_fraction_only_adds_held_out_documents() -> None:
    texts = [f"document {number}" for number in range(2000)]
    small = {text for text in texts if is_held_out(text, fraction=0.05)}
    large = {text for text in texts if is_held_out(text, fraction=0.2)}
    assert small < large
    assert (len(small), len(large)) == (102, 397)  # 100 and 400 expected
    assert not any(is_held_out(text, fraction=0.0) for text in texts)
