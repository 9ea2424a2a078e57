"""The last part of the page: how the pictures and the numbers were made."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from b4m.report.read import World, name_of


def facts(world: World) -> str:
    """Settings of every row, adapters, encoders, references, prompts and versions."""
    provenance = world.provenance
    runs = [
        (
            name_of(run["label"])[0],
            run["method"],
            run["steps"],
            run["guidance"],
            run["base_id"],
            _short(run["base_hash"]),
            _short(run["adapter_hash"]) or "none",
        )
        for run in provenance["samples"]
    ]
    heads: Sequence[str]
    heads = ("Row", "Method", "Steps", "Guidance", "Base", "Base hash", "Adapter hash")
    parts = [_details("How the pictures were drawn", "", _table(heads, runs))]
    for adapter_hash, about in world.adapters.items():
        name = f"Adapter {adapter_hash[:12]}"
        said = " ".join(str(about[key]) for key in ("stage", "method", "concept") if about.get(key))
        parts.append(_details(name, said, _pairs(_flat(about))))
    encoders: Sequence[Sequence[object]] = [
        (entry["id"], entry["preprocessing"], entry["weights_sha256"])
        for entry in provenance["encoders"]
    ]
    parts.append(
        _details(
            "Who judged", "", _table(("Encoder", "What it sees", "sha256 of its weights"), encoders)
        )
    )
    references = [
        (
            entry["kind"],
            entry["concept"],
            "held back from training" if entry["role"] == "reference" else "the training pictures",
            len(entry["files"]),
            ", ".join(_short(file["sha256"]) for file in entry["files"]),
        )
        for entry in provenance["references"]
    ]
    heads = ("Kind", "Concept", "References", "Number", "sha256 of the pictures")
    parts.append(_details("Compared with", "", _table(heads, references)))
    asked = [
        (entry["prompt"], entry["asked"], f"{entry['content']} + {entry['style']}")
        for entry in provenance["prompts_for_clip_t"]
    ]
    if asked:
        heads = ("Prompt", "In plain words", "For")
        parts.append(_details("Prompts", "as drawn, and as judged", _table(heads, asked)))
    rest = {
        "made": provenance["created"],
        "b4m": provenance["b4m_version"],
        "git commit": provenance["git_commit"] or "unknown",
        "data (DVC md5)": provenance["data_md5"] or "not under DVC",
        "seeds": ", ".join(map(str, provenance["seeds"])),
        **{f"statistics, {key}": value for key, value in provenance["statistics"].items()},
    }
    parts.append(_details("Versions and statistics", "", _pairs(rest)))
    return f"<h2>Settings and provenance</h2>{''.join(parts)}"


def _details(name: str, said: str, content: str) -> str:
    return (
        f"<details><summary>{escape(name)} <span>{escape(said)}</span></summary>"
        f'<div class="scroll">{content}</div></details>'
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    lines = ["".join(f"<td>{_value(cell)}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table class="facts"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def _pairs(values: Mapping[str, Any]) -> str:
    rows = [f"<tr><th>{escape(k)}</th><td>{_value(v)}</td></tr>" for k, v in values.items()]
    return f'<table class="facts">{"".join(rows)}</table>'


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        elif value not in ("", None):
            found[f"{prefix}{key}"] = value
    return found


def _value(value: object) -> str:
    """Escaped text; what looks like a hash in a fixed-width face."""
    text = escape(str(value))
    hexadecimal = len(text) >= 12 and all(letter in "0123456789abcdef, " for letter in text)
    return f"<code>{text}</code>" if hexadecimal else text


def _short(digest: str) -> str:
    return digest[:12]
