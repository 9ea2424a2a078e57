"""One backward pass for two halves: each block of a projection learns from its own examples."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from b4m.adapters.deltas import PLP


class GradientRouted(nn.Module):
    """A PLP whose main block learns from a batch's first examples, its other block from the rest.

    All examples see the whole delta; what is routed are gradients, so one backward pass gives both
    blocks theirs, each from its own examples alone.

    Args:
        plp: the projection.
        main: "down" or "up", the factor that holds the main block.
        examples: how many examples of each batch are main ones.
    """

    def __init__(self, plp: PLP, main: str, examples: int) -> None:
        super().__init__()
        self.plp = plp
        self.main = main
        self.examples = examples

    @property
    def out_features(self) -> int:
        """O of the linear that this is added to."""
        return self.plp.out_features

    @property
    def in_features(self) -> int:
        """I of the linear that this is added to."""
        return self.plp.in_features

    def forward(self, x: Tensor) -> Tensor:
        up_OR, down_RI = self.plp.up.to(x.dtype), self.plp.down.to(x.dtype)
        still_up, still_down = up_OR.detach(), down_RI.detach()
        pairs = [(still_up, down_RI), (up_OR, still_down)]
        if self.main == "up":
            pairs.reverse()
        parts = x[: self.examples], x[self.examples :]
        outputs = []
        for part, (up, down) in zip(parts, pairs, strict=True):
            hidden = linear(part, down)
            if self.plp.kept_R is not None:
                hidden = hidden * self.plp.kept_R.to(x.dtype)
            outputs.append(linear(hidden, up))
        return torch.cat(outputs)
