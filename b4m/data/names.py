"""Names of contents and styles, as people give them to folders and ask for them.

A name becomes part of file names and stands between commas and plus signs, so it has one spelling
(Unicode's NFC, which macOS does not use on disk) and no path in it; commas and plus signs it may
have itself.
"""

import unicodedata
from collections.abc import Collection

from b4m.errors import B4MError

_LONGEST = 100  # bytes; two names and a method's make one file name, of 255 at most


def canonical(name: str) -> str:
    """The one spelling of a name."""
    return unicodedata.normalize("NFC", name).strip()


def check_name(name: str, where: str, longest: int = _LONGEST) -> None:
    """Refuse a name that cannot be part of a file's name.

    Args:
        name: of a content or a style.
        where: named in the message.
        longest: bytes that it may have.

    Raises:
        B4MError: for an empty or too long name, one that begins with a dot, or one with slashes,
            control characters or bytes that are no text.
    """
    problem = ""
    if not name:
        problem = "is empty"
    elif name.startswith(".") or any(letter in "/\\" for letter in name):
        problem = "begins with a dot or has a slash"
    elif any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        problem = "has control characters or bytes that are no text"
    elif len(name.encode()) > longest:
        problem = f"is longer than {longest} bytes"
    if problem:
        raise B4MError(f"{where}: the name {name!r} {problem}; give it another name")


def cut_names(text: str, known: Collection[str]) -> tuple[str, ...]:
    """The names in a text that separates them by commas, each once.

    Where pieces together are a known name ("salt, pepper"), they are that name.
    """
    pieces = text.split(",")
    names: list[str] = []
    while pieces:
        joined = (canonical(",".join(pieces[:n])) for n in range(len(pieces), 1, -1))
        name = next((one for one in joined if one in known), canonical(pieces[0]))
        names.append(name)
        pieces = pieces[name.count(",") + 1 :]
    return tuple(dict.fromkeys(filter(None, names)))


def find_pair(
    pair: str, contents: Collection[str], styles: Collection[str]
) -> tuple[str, str] | None:
    """Content and style of "content+style", or None if no pair of known names is written so.

    Raises:
        B4MError: if more than one is.
    """
    pieces = canonical(pair).split("+")
    cuts = [("+".join(pieces[:n]), "+".join(pieces[n:])) for n in range(1, len(pieces))]
    found = [(content, style) for content, style in cuts if content in contents and style in styles]
    if len(found) > 1:
        raise B4MError(f"{pair!r} may be {found[0]} or {found[1]}; rename one of the folders")
    return found[0] if found else None


def cut_pair(pair: str, contents: Collection[str], styles: Collection[str]) -> tuple[str, str]:
    """Content and style of "content+style"; both may have plus signs themselves.

    Raises:
        B4MError: if no pair of known names is written so, or more than one.
    """
    found = find_pair(pair, contents, styles)
    if found is not None:
        return found
    raise B4MError(
        f"{pair!r} is not a concept content+style of the data, which has the contents "
        f"{', '.join(sorted(contents)) or 'none'} and the styles "
        f"{', '.join(sorted(styles)) or 'none'}"
    )
