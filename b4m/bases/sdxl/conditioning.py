"""What the UNet is told: text embeddings, pooled embedding, sizes; and one call of it.

Shape suffixes: B batch, T tokens, D width of both text encoders together, P pooled width, C H W
latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from b4m.bases.sdxl.load import Base, pipeline

_PROMPTS_AT_ONCE = 32


@dataclass(frozen=True)
class Conditioning:
    """Text embeddings of B prompts: hidden states of both encoders and the pooled vector."""

    hidden_BTD: Tensor
    pooled_BP: Tensor

    def __len__(self) -> int:
        return self.hidden_BTD.shape[0]

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> "Conditioning":
        """The prompts `rows`; a list may name one row several times."""
        index: Any = list(rows) if not isinstance(rows, slice | Tensor) else rows
        return Conditioning(self.hidden_BTD[index], self.pooled_BP[index])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Conditioning":
        """Move, and cast if a dtype is given."""
        return Conditioning(
            self.hidden_BTD.to(device, dtype or self.hidden_BTD.dtype),
            self.pooled_BP.to(device, dtype or self.pooled_BP.dtype),
        )

    @classmethod
    def cat(cls, parts: Sequence["Conditioning"]) -> Self:
        """Put the prompts of all parts into one batch, in order."""
        return cls(
            torch.cat([part.hidden_BTD for part in parts]),
            torch.cat([part.pooled_BP for part in parts]),
        )


@torch.no_grad()
def encode_prompts(base: Base, prompts: Sequence[str]) -> Conditioning:
    """Encode prompts as SDXL's pipeline does: next-to-last hidden states, pooled projection.

    Args:
        base: the model whose text encoders are used.
        prompts: B texts; "" is encoded as a text (see `unconditional` for guidance).
    """
    pipe = pipeline(base)
    parts = []
    for start in range(0, len(prompts), _PROMPTS_AT_ONCE):
        hidden_BTD, _, pooled_BP, _ = pipe.encode_prompt(
            prompt=list(prompts[start : start + _PROMPTS_AT_ONCE]),
            device=base.device,
            do_classifier_free_guidance=False,
        )
        parts.append(Conditioning(hidden_BTD, pooled_BP))
    return Conditioning.cat(parts)


@torch.no_grad()
def unconditional(base: Base, n: int) -> Conditioning:
    """What stands for "no prompt" in guidance, n times: zeros or the encoded empty text."""
    empty = encode_prompts(base, [""])
    if base.empty_prompt == "zeros":
        empty = Conditioning(torch.zeros_like(empty.hidden_BTD), torch.zeros_like(empty.pooled_BP))
    return empty[[0] * n]


def time_ids(base: Base, n: int) -> Tensor:
    """SDXL's size conditioning (n, 6): original size, crop corner, target size, in pixels."""
    side = float(base.pixels)
    row = torch.tensor([side, side, 0.0, 0.0, side, side], device=base.device, dtype=base.dtype)
    return row.repeat(n, 1)


def predict(
    unet: nn.Module, base: Base, latents_BCHW: Tensor, t_B: Tensor, conditioning: Conditioning
) -> Tensor:
    """One call of the UNet, plain or adapted: its raw output (noise or velocity) in float32.

    Args:
        unet: `base.unet` or an `AdaptedUNet` over it.
        base: says which dtype the UNet computes in, and the sizes it is told.
        latents_BCHW: noisy latents.
        t_B: timesteps, integers in [0, training steps).
        conditioning: of the B prompts.
    """
    output = unet(
        latents_BCHW.to(base.dtype),
        t_B,
        encoder_hidden_states=conditioning.hidden_BTD.to(base.dtype),
        added_cond_kwargs={
            "text_embeds": conditioning.pooled_BP.to(base.dtype),
            "time_ids": time_ids(base, len(latents_BCHW)),
        },
    )
    # An adapted UNet returns the tensor, diffusers' own wraps it.
    prediction_BCHW: Tensor = output if isinstance(output, Tensor) else output.sample
    return prediction_BCHW.float()
