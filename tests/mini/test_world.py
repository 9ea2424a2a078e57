"""The offline world: names, splits, wordings, topology."""

import random

import pytest
import torch

from b4m.bases.sdxl.blocks import GROUPS, group_of
from b4m.bases.sdxl.model import attention_linears
from b4m.testing import build_unet, learn_tokenizer
from b4m_mini import captions
from b4m_mini.catalog import PAINTED, STYLES, Content, ascii_text, read_contents
from b4m_mini.grid import Cell
from b4m_mini.recipe import RECIPES

OCTOPUS = Content(
    "octopus",
    "1f419",
    "octopus",
    "animals-nature",
    "animal-marine",
    ("animal", "creature"),
    "sea animal",
)
CAT = Content("cat", "1f408", "cat", "animals-nature", "animal-mammal", ("pet",), "animal")


@pytest.mark.parametrize(
    ("content", "style", "split"),
    [
        (CAT, "twemoji", "base"),
        (OCTOPUS, "twemoji", "content"),
        (CAT, "openmoji", "style"),
        (OCTOPUS, "openmoji-black", "both"),
    ],
)
def test_a_cell_belongs_to_the_split_of_what_the_base_may_see(
    content: Content, style: str, split: str
) -> None:
    assert Cell(content, STYLES[style]).split == split


def test_styles_have_names_of_their_own_and_a_third_of_the_painted_ones_is_held_out() -> None:
    assert len({style.words for style in STYLES.values()}) == len(STYLES)
    painted = [style for style in STYLES.values() if style.kind == PAINTED]
    assert len(painted) == 26
    assert sum(style.held_out for style in painted) == 9
    assert all(
        style.package.licence != "CC-BY-SA-4.0" for style in STYLES.values() if not style.held_out
    )


def test_the_table_becomes_contents_without_signs_and_near_copies() -> None:
    def row(name: str, group: str, subgroup: str, code: str) -> dict[str, str]:
        return {
            "hexcode": code,
            "annotation": name,
            "group": group,
            "subgroups": subgroup,
            "tags": "One, two",
            "skintone": "",
        }

    rows = [
        row("woman\u2019s boot", "objects", "clothing", "1F462"),
        row("twelve o\u2019clock", "travel-places", "time", "1F55B"),
        row("play button", "symbols", "av-symbol", "25B6"),
        row("grinning face", "smileys-emotion", "face-smiling", "1F600"),
    ]
    (boot,) = read_contents(rows)
    assert (boot.id, boot.name, boot.class_word) == ("woman-s-boot", "woman's boot", "clothing")
    assert boot.tags == ("one", "two")
    assert ascii_text("Caf\u00e9") == "cafe"


def test_wordings_keep_to_the_shares_of_the_recipe() -> None:
    generator = random.Random(0)
    recipe = RECIPES["laptop"].base
    texts = [captions.caption(OCTOPUS, STYLES["noto"], generator, recipe) for _ in range(4000)]
    named = sum("octopus" in text for text in texts) / len(texts)
    styled = sum("soft shaded" in text for text in texts) / len(texts)
    assert named == pytest.approx(1 - recipe.nameless, abs=0.03)
    assert styled == pytest.approx(1 - recipe.styleless - recipe.nonsense_style, abs=0.03)


def test_any_text_can_be_written_in_the_learned_vocabulary() -> None:
    learned = learn_tokenizer(["an octopus in flat style"] * 3, vocabulary=540, max_tokens=24)
    ids = learned("a snq Octopus \u00e9 in w@z style")["input_ids"]
    assert learned.unk_token_id not in ids[1:-1]
    assert learned.decode(ids, skip_special_tokens=True).replace(" ", "").startswith("asnqoctopus")
    assert max(ids) == learned.eos_token_id  # open_clip reads a text at its largest id


@pytest.mark.parametrize("name", RECIPES)
def test_every_attention_group_of_sdxl_is_there_with_eight_linears(name: str) -> None:
    with torch.device("meta"):
        linears = attention_linears(build_unet(RECIPES[name].architecture))
    for group in GROUPS:
        assert sum(group_of(linear) == group for linear in linears) == 8
    assert len(linears) == 8 * len(GROUPS)
