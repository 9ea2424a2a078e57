"""Claim: a damaged adapter file is read, or refused in one sentence, whatever is wrong with it.

300 mutated files in the default run, 5000 in the slow one.
"""

import json
import os
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from key_styles import STYLES, adapter, named
from safetensors.torch import save
from torch import Tensor

from b4m import verbs
from b4m.errors import B4MError
from b4m.files import describe, read_adapter, write_adapter
from tests.fuzz import little_memory

NUMBERS = [-1, 0, 1, 3, 2**31, 2**53, 2**64, 1.5, True, None, "4", [], {}]
DTYPES = ["F8_E4M3", "I64", "U8", "BOOL", "C64", "F4", "Q8", "", 7]
NAMES = [
    "",
    ".",
    "lora_unet_",
    "a" * 5000,
    ".lora_down.weight",
    "x.hada_w1_a",
    "\x00.alpha",
    "__metadata__",
]


def sources(folder: Path) -> list[bytes]:
    """Sound files of several kinds, to be damaged."""
    files = [save(named(STYLES[style])) for style in ("kohya", "comfyui", "diffusers-old")]
    files.append(write_adapter(folder / "own.safetensors", adapter(text=True)).read_bytes())
    stem = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    for kind in ("hada_w{k}_{x}", "lokr_w{k}_{x}"):
        parts: dict[str, Tensor] = {}
        for k in (1, 2):
            for x, pair in (("a", "up"), ("b", "down")):
                source = next(iter(adapter().layers.values()))
                parts[f"{stem}.{kind.format(k=k, x=x)}"] = getattr(source, pair).clone()
        files.append(save(parts))
    return files


def packed(table: Any, data: bytes) -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + data


def truncated(rng: random.Random, raw: bytes) -> bytes:
    return raw[: rng.randrange(len(raw))]


def wrong_length(rng: random.Random, raw: bytes) -> bytes:
    length = rng.choice([0, 1, 7, 2**20, 2**40, 2**63, 2**64 - 1, len(raw), len(raw) - 8])
    return struct.pack("<Q", length) + raw[8:]


def flipped(rng: random.Random, raw: bytes) -> bytes:
    damaged = bytearray(raw)
    for _ in range(rng.randint(1, 30)):
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    return bytes(damaged)


def entry_changed(rng: random.Random, raw: bytes) -> bytes:
    """Overlapping offsets, wrong number formats, huge and senseless shapes, odd names."""
    length = struct.unpack("<Q", raw[:8])[0]
    table = json.loads(raw[8 : 8 + length])
    names = [name for name in table if name != "__metadata__"]
    name = rng.choice(names)
    entry = table[name]
    change = rng.choice(["offsets", "dtype", "shape", "name", "missing", "header", "swap"])
    if change == "offsets":
        entry["data_offsets"] = rng.choice(
            [table[rng.choice(names)]["data_offsets"], [0, 2**60], [9, 3], [-4, 4], [], "0", None]
        )
    elif change == "dtype":
        entry["dtype"] = rng.choice(DTYPES)
    elif change == "shape":
        entry["shape"] = [rng.choice(NUMBERS) for _ in range(rng.randint(0, 5))]
    elif change == "name":
        table[rng.choice(NAMES)] = table.pop(name)
    elif change == "missing":
        del entry[rng.choice(sorted(entry))]
    elif change == "swap":  # shapes of equal size in another order
        entry["shape"] = [1] * rng.randint(0, 3) + entry["shape"][::-1]
    else:
        values = rng.choice(
            [{"b4m.rank": "x"}, {"b4m.config": "["}, {"a": 1}, [], 7, {"b4m.triggers": "{}"}]
        )
        table["__metadata__"] = values
    return packed(table, raw[8 + length :])


def duplicate_key(rng: random.Random, raw: bytes) -> bytes:
    length = struct.unpack("<Q", raw[:8])[0]
    text = raw[8 : 8 + length].rstrip()
    entries = re.findall(rb'"[^"]+":\{"dtype"[^}]*\}', text)
    return packed(text[:-1] + b"," + rng.choice(entries) + b"}", raw[8 + length :])


TABLES = [entry_changed, entry_changed, duplicate_key]  # they need a table that can be read
BYTES = [truncated, wrong_length, flipped]


def outcome(read: Callable[[Path], object], file: Path) -> str:
    """The sentence of a refusal; "" if the file is read. Anything else is the test's failure."""
    try:
        read(file)
    except B4MError as error:
        return str(error)
    return ""


def converted(file: Path) -> Path:
    """What is read is written, or nothing is."""
    return verbs.convert(file, file.with_name("out.safetensors"), form="same", rank=2)


@pytest.mark.filterwarnings("ignore:rank 2 loses", "ignore:.*are cut to rank")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_a_mutated_file_is_read_or_refused_in_one_sentence(tmp_path: Path, count: int) -> None:
    originals = sources(tmp_path)
    (tmp_path / "work").mkdir()
    file = tmp_path / "work/damaged.safetensors"
    refused = 0
    for number in range(count):
        rng = random.Random(number)
        damaged = rng.choice(originals)
        first = rng.choice([*TABLES, *BYTES])
        damaged = first(rng, damaged)
        if first in TABLES and rng.random() < 0.3:
            damaged = rng.choice(BYTES)(rng, damaged)
        file.write_bytes(damaged)
        for read in (read_adapter, describe, converted):
            try:
                with little_memory():
                    sentence = outcome(read, file)
            except Exception as error:
                pytest.fail(f"file {number}, {read.__name__}: {type(error).__name__}: {error}")
            refused += bool(sentence)
            assert "\n" not in sentence, number
            assert not sentence or file.parent.name in sentence or "header" in sentence, number
        left = set(os.listdir(file.parent)) - {file.name}
        assert left == (set() if sentence else {"out.safetensors"}), number
        file.with_name("out.safetensors").unlink(missing_ok=True)
    assert refused > count / 2, "most files are still sound, so nothing is tested"
