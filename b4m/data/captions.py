"""Captions and prompts: where the trigger words go.

    content   "a snq animal in bold flat style"    the picture of the thing, and its look if known
    style     "a lion in w@z ink style"            any picture in the style
    merged    "a snq animal in w@z ink style"      what is asked of the merged adapter

As in B4M's released prompts ("w@z yarn art style"), words for the style stand beside its trigger:
the adapter then learns how this ink differs from ink as the base knows it.

Partners of multi-correspondence training carry the same trigger as the concept would, plus the
words for what they really are: "a lion in w@z flat sticker style", "a snq vehicle".
"""

from random import Random

from b4m.errors import B4MError
from b4m.settings import CONTENT_TRIGGER, STYLE_TRIGGER


def content_caption(class_word: str, style_words: str = "") -> str:
    """Caption of a picture of the content, e.g. of class word "animal".

    `style_words` name the look of that picture if the base knows it ("bold flat"): what they
    explain, the trigger need not learn, as "a photo of" does in the released scripts.
    """
    thing = f"a {CONTENT_TRIGGER} {class_word}".rstrip()
    return f"{thing} in {style_words} style" if style_words else thing


def style_caption(words: str, style_words: str = "") -> str:
    """Caption of a picture in the style that shows `words`, e.g. "a lion"."""
    return " ".join(f"{words} in {STYLE_TRIGGER} {style_words} style".split())


def merged_caption(class_word: str, style_words: str = "") -> str:
    """Prompt for the content in the style, each called as in its own captions."""
    return style_caption(content_caption(class_word), style_words)


def prior_caption(caption: str, trigger: str, class_word: str, kind: str) -> str:
    """What an image of the class is called: "an animal", or of a style what its caption shows.

    Args:
        caption: of a training image.
        trigger: its trigger words.
        class_word: what the trigger stands for.
        kind: content or style.
    """
    if kind == "content" and class_word:
        return with_article(class_word)
    if kind == "style":
        caption = caption.partition(f" in {trigger}")[0]
    words = [word for word in caption.split() if word not in trigger.split()]
    return " ".join(words) or "a picture"


def shuffled_tags(caption: str, keep: int, seed: int) -> str:
    """A caption with its comma-separated tags in another order.

    Args:
        caption: "a snq mug, red, on a table".
        keep: tags at the beginning that keep their place.
        seed: of the order.
    """
    tags = [tag.strip() for tag in caption.split(",")]
    head, tail = tags[:keep], tags[keep:]
    Random(seed).shuffle(tail)
    return ", ".join([*head, *tail])


def with_article(name: str) -> str:
    """Put "a" or "an" before a name that has no article."""
    first = name.split(" ", 1)[0].lower()
    if not name or first in {"a", "an", "the", "some", "two", "three"}:
        return name
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def check_trigger(caption: str, trigger: str, where: str) -> None:
    """Refuse a caption without its trigger word: the adapter would never learn to listen to it.

    Args:
        caption: the text.
        trigger: one or several words, separated by spaces; all must occur as whole words.
        where: named in the message.

    Raises:
        B4MError: naming the file and the missing trigger.
    """
    words = {word.strip(".,;:!?\"'()") for word in caption.split()}
    for word in trigger.split():
        if word not in words:
            raise B4MError(
                f"{where}: the caption {caption!r} lacks the trigger word {word!r}; "
                "add it, or remove the caption file to get a caption made"
            )
