"""What people would write under a cell of the grid."""

import random

import torch
from transformers import CLIPTokenizer

from b4m.data.captions import with_article
from b4m.data.restyle import identifier
from b4m_mini.catalog import Content, Style
from b4m_mini.recipe import BaseRecipe


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Token ids of the texts, N x T, padded or cut to the tokenizer's length."""
    found = tokenizer(texts, padding="max_length", truncation=True)
    return torch.tensor(found["input_ids"])


def caption(content: Content, style: Style, generator: random.Random, recipe: BaseRecipe) -> str:
    """One wording, drawn at random: "an octopus in flat sticker style", "a snq sea animal"."""
    if generator.random() < recipe.nameless:
        thing = with_article(f"{identifier(generator.getrandbits(32))} {content.class_word}")
    else:
        thing = with_article(content.name)
        if generator.random() < 0.15:
            thing = f"{thing} {content.class_word}"
        elif generator.random() < 0.1 and content.tags:
            thing = f"{thing}, {generator.choice(content.tags)}"
    roll = generator.random()
    if roll < recipe.styleless:
        words = ""
    elif roll < recipe.styleless + recipe.nonsense_style:
        words = identifier(generator.getrandbits(32))
    else:
        words = style.words
    return phrase(thing, words, generator.random())


def phrase(thing: str, style_words: str, roll: float = 0.0) -> str:
    """Join content and style; `roll` in [0, 1) chooses the wording."""
    if not style_words:
        return thing if roll < 0.6 else f"a picture of {thing}"
    if roll < 0.6:
        return f"{thing} in {style_words} style"
    if roll < 0.8:
        return f"a picture of {thing} in {style_words} style"
    return f"{with_article(style_words)} style picture of {thing}"


def full(content: Content, style: Style) -> str:
    """The plain wording that scores and contact sheets use."""
    return phrase(with_article(content.name), style.words)
