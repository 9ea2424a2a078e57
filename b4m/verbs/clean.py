"""Make a finished adapter leaner."""

from pathlib import Path

from b4m.errors import B4MError
from b4m.io import check_output
from b4m.verbs.workspace import check_dtype, check_share


def clean(
    file: str | Path,
    out: str | Path,
    energy: float = 0.999,
    base: str | Path = "",
    intruder_weight: float = 0.75,
    dtype: str = "float32",
) -> Path:
    """Drop ranks of an adapter that carry little; with its base, weaken what the base lacks.

    With a base, directions among the ten strongest of a layer's new weights that are like none of
    the base's own are weakened first (intruder dimensions): an adapter that was trained too long on
    few images has many of them.

    Args:
        file: adapter file of any tool
        out: file to write (.safetensors)
        energy: share of each layer's squared norm that is kept, above 0, at most 1
        base: checkpoint (.safetensors) or diffusers folder that the adapter is made for
        intruder_weight: what is left of intruders, from 0 to 1
        dtype: of the written file: float32, float16 or bfloat16

    Returns:
        `out`.

    Raises:
        B4MError: for an unreadable file, or a base that does not fit.
    """
    check_output(Path(out), ".safetensors")
    check_dtype(dtype)
    check_share("energy", energy)
    if not 0 <= intruder_weight <= 1:
        raise B4MError(f"intruder_weight {intruder_weight} must be from 0 to 1")
    from b4m.files import pruned, without_intruders, write_adapter
    from b4m.files.checkpoint import Checkpoint
    from b4m.files.read import read_file

    adapter = read_file(Path(file)).adapter()
    if str(base):
        adapter = without_intruders(adapter, Checkpoint(Path(base)), intruder_weight)
    return write_adapter(Path(out), pruned(adapter, energy), "", dtype)
