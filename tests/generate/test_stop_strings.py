"""Stop strings: nothing of one and nothing after it comes out, wherever the pieces are cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerformer.errors import ConfigError
from peerformer.generate.stop_strings import CHARACTERS_MAX, STOPS_MAX, StopStrings

letters = st.text("ab", max_size=24)


def run(pieces, stops):
    watch = StopStrings(stops)
    out = "".join(watch.feed(piece) for piece in pieces)
    return out + watch.finish(), watch.found


@given(
    text=letters, stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), data=st.data()
)
@settings(max_examples=300, deadline=None)
def test_what_comes_out_ends_before_the_first_complete_stop_string(text, stops, data):
    ends = [(text.find(s) + len(s), text.find(s), s) for s in stops if s in text]
    expected = (text[: min(ends)[1]], min(ends)[2]) if ends else (text, None)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert run(pieces, stops) == expected
    assert run(text, stops) == expected, "one character at a time"


def test_text_is_held_back_only_while_it_may_become_a_stop_string():
    watch = StopStrings(["</end>"])
    assert [watch.feed(piece) for piece in ("one <", "b> two </en", "d", "> three")] == [
        "one ", "<b> two ", "", "",
    ]  # fmt: skip
    assert watch.found == "</end>" and watch.feed("more") == "" and watch.finish() == ""


@pytest.mark.parametrize("stops", [[""], ["a" * (CHARACTERS_MAX + 1)], ["a"] * (STOPS_MAX + 1)])
def test_stop_strings_that_cannot_be_are_refused(stops):
    with pytest.raises(ConfigError):
        StopStrings(stops)
