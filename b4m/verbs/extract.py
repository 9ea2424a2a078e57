"""Make an adapter of what a fine-tuning changed in a base."""

from pathlib import Path

from b4m.errors import B4MError
from b4m.io import check_output
from b4m.verbs.workspace import check_dtype, check_share


def extract(
    base: str | Path,
    tuned: str | Path,
    out: str | Path,
    rank: int = 32,
    energy: float = 1.0,
    form: str = "same",
    dtype: str = "float32",
    device: str = "cpu",
) -> Path:
    """Make an adapter of what a fine-tuning changed in a base, by SVD of the difference.

    Both are read layer by layer. Linears and convolutions of the denoiser get the best pair of at
    most this rank; how much of the change that loses is said, and stands in the file.

    Args:
        base: checkpoint (.safetensors) or diffusers folder, before
        tuned: the same base after fine-tuning
        out: adapter file to write (.safetensors)
        rank: most ranks of a layer
        energy: share of a layer's change that is enough, above 0, at most 1
        form: diffusers, kohya, comfyui, or same (as the checkpoint names its layers)
        dtype: of the written file: float32, float16 or bfloat16
        device: that computes: cpu, cuda, ...

    Returns:
        `out`.

    Raises:
        B4MError: for unreadable files, checkpoints of two bases, or no difference.
    """
    check_output(Path(out), ".safetensors")
    check_dtype(dtype)
    if rank < 1:
        raise B4MError(f"rank {rank} is no rank; give 1 or more")
    check_share("energy", energy)
    from b4m.files import extract_adapter, write_adapter

    adapter = extract_adapter(Path(base), Path(tuned), rank, energy, device)
    return write_adapter(Path(out), adapter, "" if form == "same" else form, dtype)
