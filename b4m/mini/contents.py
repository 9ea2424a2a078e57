"""The contents of EmojiGrid: which things are drawn, what they are called, who may see them."""

import re
import unicodedata
from dataclasses import dataclass

# Signs, buttons, flags and near copies: nobody customizes an adapter for "shuffle tracks button".
_GROUPS_LEFT_OUT = {"symbols", "flags", "component", "extras-openmoji", "extras-unicode"}
_SUBGROUPS_KEPT_OF_FACES = {"face-costume", "face-hat", "face-glasses", "monkey-face"}
_NAMES_LEFT_OUT = re.compile(
    r"o.clock|-thirty|oncoming|gibbous|quarter|waxing|waning|new moon|low volume|high volume|"
    r"(yellow|green|blue|purple|black) heart|(green|blue|orange) book|with lowered flag|"
    r"open mailbox|globe showing (Americas|Asia)|tilted right|incoming envelope|"
    r"envelope with|(yen|euro|pound) banknote|chart|suit$|place medal|speech|anger bubble|"
    r"musical notes|hourglass not|cloud with|behind (small|large|rain)|pointing|-facing fist|"
    r"bust|front-facing|airplane (dep|arr)|bridge at|at dusk|mobile phone with|camera with|"
    r"(outbox|inbox)|locked with|unlocked|hammer and|file folder|card index|calendar|"
    r"(two-hump|water buffalo)|person (pouting|frowning|gesturing|bowing|shrugging|facepalm)",
    re.IGNORECASE,
)

# The nearest word that a person would use for the class, by subgroup.
_CLASS_WORDS = {
    "animal-mammal": "animal",
    "animal-bird": "bird",
    "animal-amphibian": "reptile",
    "animal-reptile": "reptile",
    "animal-marine": "sea animal",
    "animal-bug": "insect",
    "plant-flower": "flower",
    "plant-other": "plant",
    "food-fruit": "fruit",
    "food-vegetable": "vegetable",
    "food-prepared": "meal",
    "food-asian": "meal",
    "food-sweet": "dessert",
    "drink": "drink",
    "dishware": "tableware",
    "place-map": "map",
    "place-geographic": "landscape",
    "place-building": "building",
    "place-religious": "building",
    "place-other": "scene",
    "transport-ground": "vehicle",
    "transport-water": "boat",
    "transport-air": "aircraft",
    "hotel": "object",
    "time": "clock",
    "sky-weather": "weather",
    "event": "party thing",
    "award-medal": "award",
    "sport": "sports thing",
    "game": "game",
    "arts-crafts": "artwork",
    "clothing": "clothing",
    "sound": "sound device",
    "music": "music thing",
    "musical-instrument": "instrument",
    "phone": "device",
    "computer": "device",
    "light-video": "device",
    "book-paper": "paper thing",
    "money": "money",
    "mail": "mail",
    "writing": "pen",
    "office": "office thing",
    "lock": "lock",
    "tool": "tool",
    "science": "instrument",
    "medical": "medicine",
    "household": "furniture",
    "other-object": "object",
    "heart": "heart",
    "emotion": "sign",
    "face-costume": "character",
    "face-hat": "face",
    "face-glasses": "face",
    "monkey-face": "animal",
}

# About 60, spread over the groups: things that a studio would draw.
HELD_OUT = frozenset(
    """octopus owl fox panda butterfly turtle penguin elephant crab snail unicorn spouting-whale
    frog cactus sunflower mushroom pineapple hamburger doughnut avocado watermelon birthday-cake
    soft-ice-cream hot-pepper sushi teacup-without-handle bicycle sailboat helicopter castle tent
    rocket police-car volcano ferris-wheel umbrella locomotive snowman trophy balloon soccer-ball
    jack-o-lantern artist-palette game-die violin camera crown key light-bulb microscope backpack
    scissors hammer telephone top-hat alarm-clock bell santa-claus prince thumbs-up ghost
    cowboy-hat-face""".split()
)


@dataclass(frozen=True)
class Content:
    """One row of the grid.

    Attributes:
        id: the name as a file name.
        code: Unicode code point, lower-case hexadecimal.
        name: what captions call it.
        group: OpenMoji's group and subgroup.
        tags: further words that people would use.
        class_word: the word for its class ("animal"), for captions of a new thing.
    """

    id: str
    code: str
    name: str
    group: str
    subgroup: str
    tags: tuple[str, ...]
    class_word: str

    @property
    def held_out(self) -> bool:
        """Whether the base never sees it, in any style."""
        return self.id in HELD_OUT


def ascii_text(text: str) -> str:
    """`text` in lower-case ASCII, typographic quotes and accents replaced."""
    plain = unicodedata.normalize("NFKD", text.replace("\u2019", "'"))
    return plain.encode("ascii", "ignore").decode().lower()


def from_table(rows: list[dict[str, str]]) -> list[Content]:
    """The contents in OpenMoji's table, in its order.

    Args:
        rows: rows of `openmoji.csv`.
    """
    contents = []
    for row in rows:
        code = row["hexcode"].replace("-FE0F", "").lower()
        group, subgroup = row["group"], row["subgroups"]
        face = subgroup.startswith("face-") and subgroup not in _SUBGROUPS_KEPT_OF_FACES
        if "-" in code or row["skintone"] or group in _GROUPS_LEFT_OUT or face:
            continue
        if _NAMES_LEFT_OUT.search(row["annotation"]):
            continue
        name = ascii_text(row["annotation"])
        tags = tuple(ascii_text(tag).strip() for tag in row["tags"].split(",") if tag.strip())
        if subgroup.startswith("hand") or subgroup == "body-parts":
            class_word = "hand" if subgroup.startswith("hand") else "body part"
        elif subgroup.startswith("person"):
            class_word = "person"
        else:
            class_word = _CLASS_WORDS.get(subgroup, "thing")
        identifier = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
        contents.append(Content(identifier, code, name, group, subgroup, tags, class_word))
    return contents
