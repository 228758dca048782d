from __future__ import annotations

import pytest

from stoker.runtime.engine.stop import Detokenizer, StopMatcher


def _decode(tokens: object) -> str:
    return bytes(tokens).decode("utf-8", "replace")  # type: ignore[call-overload]


def _push(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    sent = ""
    for piece in pieces:
        text, stopped = matcher.push(piece)
        sent += text
        if stopped:
            return sent, True
    return sent + matcher.flush(), False


@pytest.mark.parametrize("text", ["plain", "žluťoučký kůň", "日本語 🦊 ok", "👩‍👩‍👧 end"])
def test_characters_are_never_cut_however_many_tokens_they_take(text: str) -> None:
    detokenizer = Detokenizer(_decode)

    pieces = [detokenizer.push(token) for token in text.encode()]

    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) + detokenizer.flush() == text


def test_a_character_left_incomplete_at_the_end_is_dropped() -> None:
    detokenizer = Detokenizer(_decode)

    pieces = [detokenizer.push(token) for token in "ok🦊".encode()[:-1]]

    assert "".join(pieces) + detokenizer.flush() == "ok"


@pytest.mark.parametrize(
    ("stops", "pieces", "expected"),
    [
        (["END"], ["some E", "N", "D more"], ("some ", True)),
        (["END"], ["some E", "N", "G"], ("some ENG", False)),
        (["END"], ["E", "E", "N", "D"], ("E", True)),
        (["b", "abc"], ["xab", "c"], ("xa", True)),
        (["\n\n"], ["one\n", "two\n", "\n"], ("one\ntwo", True)),
        (["aab"], ["aa", "ab"], ("a", True)),
        ([], ["all ", "of it"], ("all of it", False)),
        (["END"], ["EN"], ("EN", False)),
    ],
)
def test_a_stop_string_ends_the_text_before_it_across_pieces(
    stops: list[str], pieces: list[str], expected: tuple[str, bool]
) -> None:
    assert _push(stops, pieces) == expected


def test_text_is_held_back_only_while_it_may_become_a_stop_string() -> None:
    matcher = StopMatcher(["END"])

    assert matcher.push("the E") == ("the ", False)
    assert matcher.push("asy way") == ("Easy way", False)
