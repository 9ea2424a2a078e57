"""What the base's tokenizers cut of a caption is told; a trigger that is cut is refused."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from b4m.bases.base import Base
from b4m.data.cache import Cache
from b4m.data.manifest import read_manifest, training_rows
from b4m.errors import B4MError
from b4m.training.training_set import read_training_set

FILLER = "a photo of a very old lighthouse , " * 20
CUT = "cut to the tokens that the base reads: "


@pytest.mark.parametrize(
    "filler", [FILLER, "1girl, solo, " * 40, "x" * 4000, "\u732b" * 200, "! " * 90]
)
def test_a_trigger_beyond_the_tokens_is_refused_with_the_file_named(
    base: Base, prepared: Path, tmp_path: Path, filler: str
) -> None:
    (row,) = training_rows(read_manifest(prepared), "content", "teapot")
    late = replace(row, caption=f"{filler} snq teapot")
    with pytest.raises(B4MError, match=rf"train-\d+\.png \(content/teapot/.*{CUT}.*lacks .* 'snq'"):
        read_training_set(prepared, [late], base, Cache(tmp_path, base))


def test_what_is_cut_after_the_trigger_is_told(base: Base, prepared: Path, tmp_path: Path) -> None:
    (row,) = training_rows(read_manifest(prepared), "content", "teapot")
    early = replace(row, caption=f"a snq teapot, {FILLER} the end")
    with pytest.warns(UserWarning, match=rf"{CUT}'.* the end' at the end of the caption is lost"):
        read_training_set(prepared, [early], base, Cache(tmp_path, base))


def test_the_part_that_is_read_is_all_that_decides_the_conditioning(base: Base) -> None:
    whole = f"a snq teapot, {FILLER} the end"
    read = base.part_read(whole)
    assert whole.startswith(read)
    assert len(read) < len(whole)
    last = read.rstrip(" ,").rpartition(" ")[0].rpartition(" ")[0]
    texts = [whole, read + whole[len(read) :].upper() + " and more", f"{last} z z z z z z z z z"]
    encoded = base.encode_prompts(texts).tensors["hidden"]
    assert (encoded[0] == encoded[1]).all()
    assert (encoded[0] != encoded[2]).any()


@pytest.mark.parametrize("caption", ["", "a snq teapot", "  a   snq\tteapot ", "\u732b snq"])
def test_nothing_is_cut_of_a_short_caption(base: Base, caption: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert base.part_read(caption) == caption
