"""Write an adapter for another tool."""

from collections.abc import Sequence
from pathlib import Path

from b4m.io import check_output


def convert(
    file: str | Path,
    out: str | Path,
    form: str = "kohya",
    dtype: str = "float32",
    rank: int = 0,
    drop: Sequence[str] = (),
    base: str | Path = "",
) -> Path:
    """Write an adapter for another tool, of any base whose layers' names are known.

    Args:
        file: adapter file of any tool
        out: file to write; for peft its adapter_config.json lies beside it
        form: diffusers, peft, kohya (A1111, ComfyUI), comfyui, or same (the names of the file)
        dtype: of the written file: float32, float16 or bfloat16
        rank: one rank for every layer, cut or filled up with zeros; 0 keeps each layer's own
        drop: leave out tensors with these parts of names, or patterns with * and ?
        base: checkpoint or diffusers folder that a DoRA is made for; it is cut to the rank

    Returns:
        Path of the written weights.

    Raises:
        B4MError: for an unreadable file, an unknown form or dtype, or a layer without a name there.
    """
    from b4m.errors import B4MError
    from b4m.files import with_rank, write_adapter
    from b4m.files.read import read_file

    if form not in ("peft", "same"):
        check_output(Path(out), ".safetensors")
    if rank < 0:
        raise B4MError(f"rank {rank} is no rank; give 1 or more, or 0 to keep each layer's own")
    adapter = read_file(Path(file), drop, rank, base).adapter()
    if rank:
        adapter = with_rank(adapter, rank)
    return write_adapter(Path(out), adapter, "" if form == "same" else form, dtype)
