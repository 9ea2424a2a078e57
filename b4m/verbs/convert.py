"""Write an adapter for another tool."""

from pathlib import Path

from b4m.io import check_output


def convert(file: str | Path, out: str | Path, form: str = "kohya", dtype: str = "float32") -> Path:
    """Write an adapter for another tool.

    Args:
        file: adapter file of any tool
        out: file to write; for peft its adapter_config.json lies beside it
        form: diffusers, peft, or kohya (A1111, ComfyUI)
        dtype: of the written file: float32, float16 or bfloat16

    Returns:
        Path of the written weights.

    Raises:
        B4MError: for an unreadable file, or an unknown form or dtype.
    """
    from b4m.files import read_adapter, write_adapter

    if form != "peft":
        check_output(Path(out), ".safetensors")
    return write_adapter(Path(out), read_adapter(Path(file)), form, dtype)
