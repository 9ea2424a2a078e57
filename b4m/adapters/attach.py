"""Put deltas onto the linears of a UNet, by forward hooks: y <- y + delta(x).

Weights of the base are never touched and no dense dW is formed, so a set of deltas can be taken
off, exchanged or trained at any time, and one UNet serves every method.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from b4m.errors import B4MError

ATTENTION = re.compile(r"\.attn[12]\.(to_q|to_k|to_v|to_out\.0)$")


def attention_linears(unet: nn.Module) -> dict[str, nn.Linear]:
    """The linears that adapters are trained on: to_q, to_k, to_v, to_out.0 of attn1 and attn2.

    Returns:
        The UNet's linears by module path, in the UNet's order; 560 of them in SDXL.
    """
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and ATTENTION.search(name)
    }


class AdaptedModel(nn.Module):
    """A frozen UNet with named sets of deltas, of which one or none is in use.

    The deltas are submodules, so DDP, `.to()` and `parameters()` see them; the UNet's own
    parameters are set to need no gradient. With gradient checkpointing, keep one set in use from
    forward to backward: the forward runs again in between.

    Args:
        unet: a diffusers UNet, called as unet(x, t, encoder_hidden_states=, added_cond_kwargs=).
        deltas: by module path of the linear; becomes the set "merged", which is then in use.

    Raises:
        B4MError: when a delta names a module that the UNet lacks, or has another shape.
    """

    def __init__(self, unet: nn.Module, deltas: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.unet = unet
        self.unet.requires_grad_(False)
        self.sets = nn.ModuleDict()
        self.active: str | None = None
        self._hooks: dict[str, RemovableHandle] = {}
        self.add("merged", deltas)
        self.use("merged")

    def add(self, name: str, deltas: Mapping[str, nn.Module]) -> None:
        """Add (or replace) a named set of deltas; `use` puts it to work."""
        linears = {n: m for n, m in self.unet.named_modules() if isinstance(m, nn.Linear)}
        unknown = [layer for layer in deltas if layer not in linears]
        if unknown:
            raise B4MError(
                f"{len(unknown)} of {len(deltas)} layers are no linears of this base, e.g. "
                f"{', '.join(unknown[:3])}; is the adapter made for another base?"
            )
        for layer, delta in deltas.items():
            _check_shape(layer, linears[layer], delta)
        for layer in deltas:
            if layer not in self._hooks:
                self._hooks[layer] = linears[layer].register_forward_hook(self._hook(layer))
        self.sets[name] = nn.ModuleDict({_key(layer): d for layer, d in deltas.items()})

    def use(self, name: str | None) -> None:
        """Put the set of this name to work, or with None the plain base."""
        if name is not None and name not in self.sets:
            raise B4MError(f"no set {name!r} of deltas; there are: {', '.join(self.sets)}")
        self.active = name

    def deltas(self, name: str = "merged") -> dict[str, nn.Module]:
        """The deltas of a set by module path."""
        return {_layer(key): delta for key, delta in self._set(name).items()}

    def forward(
        self,
        x_BCHW: Tensor,
        t: Tensor | float | int,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: Mapping[str, Tensor],
    ) -> Tensor:
        """The UNet's raw output with the set in use."""
        output = self.unet(
            x_BCHW,
            t,
            encoder_hidden_states=encoder_hidden_states,
            added_cond_kwargs=dict(added_cond_kwargs),
            return_dict=False,
        )
        prediction: Tensor = output[0]
        return prediction

    def remove(self) -> nn.Module:
        """Take every hook off and return the UNet as it was, still without gradients."""
        for handle in self._hooks.values():
            handle.remove()
        self._hooks.clear()
        self.active = None
        return self.unet

    def _set(self, name: str) -> nn.ModuleDict:
        chosen = self.sets[name]
        assert isinstance(chosen, nn.ModuleDict)
        return chosen

    def _hook(self, layer: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        key = _key(layer)

        def add_delta(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if self.active is None:
                return output
            deltas = self._set(self.active)
            if key not in deltas:
                return output
            return output + deltas[key](inputs[0]).to(output.dtype)

        return add_delta


def _check_shape(layer: str, linear: nn.Linear, delta: nn.Module) -> None:
    shape = (getattr(delta, "out_features", None), getattr(delta, "in_features", None))
    wanted = (linear.out_features, linear.in_features)
    if shape != (None, None) and shape != wanted:
        raise B4MError(
            f"{layer} is {wanted[0]} x {wanted[1]} in this base and {shape[0]} x {shape[1]} in the "
            "adapter; is the adapter made for another base?"
        )


def _key(layer: str) -> str:
    return layer.replace(".", "/")  # nn.ModuleDict allows no dots in its keys


def _layer(key: str) -> str:
    return key.replace("/", ".")
