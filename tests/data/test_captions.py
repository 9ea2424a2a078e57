"""Captions carry their triggers as words, whatever the class words are."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from b4m.data.captions import (
    check_trigger,
    content_caption,
    merged_caption,
    style_caption,
    with_article,
)
from b4m.errors import B4MError
from b4m.settings import CONTENT_TRIGGER, STYLE_TRIGGER

WORDS = st.lists(st.sampled_from(["red", "panda", "owl", "o'clock", "Bär", "3d", "an"])).map(
    " ".join
)
PUNCTUATION = ".,;:!?\"'()"


@given(WORDS, WORDS)
def test_made_captions_hold_their_triggers(class_word: str, look: str) -> None:
    content = content_caption(class_word, look)
    check_trigger(content, CONTENT_TRIGGER, "here")
    check_trigger(style_caption(with_article(class_word), look), STYLE_TRIGGER, "here")
    check_trigger(merged_caption(class_word), f"{CONTENT_TRIGGER} {STYLE_TRIGGER}", "here")
    assert STYLE_TRIGGER not in content
    assert class_word in content
    assert look in content


@given(WORDS)
def test_made_captions_have_single_blanks(class_word: str) -> None:
    for caption in (content_caption(class_word), merged_caption(class_word)):
        assert caption == " ".join(caption.split())


def test_captions_are_those_that_the_documentation_shows() -> None:
    assert content_caption("animal", "bold flat") == "a snq animal in bold flat style"
    assert content_caption("animal") == "a snq animal"
    assert style_caption("a lion") == "a lion in w@z style"
    assert style_caption("a lion", "flat sticker") == "a lion in w@z flat sticker style"
    assert merged_caption("animal") == "a snq animal in w@z style"
    assert merged_caption("animal", "ink") == "a snq animal in w@z ink style"


@given(st.text())
def test_an_article_is_put_once(name: str) -> None:
    assert with_article(with_article(name)) == with_article(name)
    assert with_article(name).endswith(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("lion", "a lion"), ("Owl", "an Owl"), ("the sea", "the sea"), ("two cats", "two cats")],
)
def test_articles_follow_the_first_letter(name: str, expected: str) -> None:
    assert with_article(name) == expected


@given(
    st.lists(st.sampled_from(["snq", "w@z", "snqs", "a", "cat"])),
    st.text(alphabet=PUNCTUATION, max_size=2),
    st.text(alphabet=PUNCTUATION, max_size=2),
    st.sampled_from(["snq", "w@z", "snq w@z", ""]),
)
def test_a_trigger_is_found_as_a_word_between_punctuation_and_blanks(
    words: list[str], before: str, after: str, trigger: str
) -> None:
    caption = " ".join(f"{before}{word}{after}" for word in words)
    quoted = re.escape(PUNCTUATION)
    there = all(
        re.search(rf"(^|[\s{quoted}]){re.escape(word)}($|[\s{quoted}])", caption)
        for word in trigger.split()
    )
    if there:
        check_trigger(caption, trigger, "a.txt")
    else:
        with pytest.raises(B4MError, match=r"a\.txt: the caption .* lacks the trigger word"):
            check_trigger(caption, trigger, "a.txt")
