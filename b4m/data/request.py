"""What is chosen from a source of pictures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """Names of contents and styles, and how many pictures each gets."""

    contents: tuple[str, ...]
    styles: tuple[str, ...]
    style_images: int
    partners: int
    seed: int
    content_style: str
