"""What a command answers: exit status, output, errors."""

from pathlib import Path

import torch
from safetensors.torch import save_file

Answer = tuple[int, str, str]
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def is_one_sentence(errors: str) -> bool:
    """Whether the command line's error is one line that says who speaks."""
    return errors.startswith("b4m: ") and len(errors.strip().splitlines()) == 1


def assert_refused(answer: Answer, out: Path, *words: str) -> None:
    """One sentence with these words, status 2, and nothing written."""
    status, printed, errors = answer
    assert status == 2, printed + errors
    assert is_one_sentence(errors), errors
    assert not [word for word in words if word not in errors], errors
    assert not list(out.parent.glob(f"*{out.stem}*")), "something was left behind"


def write_adapter(file: Path, value: float = 0.1, **metadata: str) -> Path:
    """One layer in the key style of diffusers."""
    prefix = f"unet.{LAYER}.lora"
    down, up = torch.full((2, 64), value), torch.full((64, 2), 0.1)
    tensors = {f"{prefix}.down.weight": down, f"{prefix}.up.weight": up}
    save_file(tensors, file, metadata={f"b4m.{key}": text for key, text in metadata.items()})
    return file
