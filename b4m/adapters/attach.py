"""Put deltas onto the linears of a model, by forward hooks: y <- y + delta(x).

A convolution is a linear of the patches that its kernel sees, so a delta of in = channels x kernel
fits it as well.

Weights of the base are never touched and no dense dW is formed, so a set of deltas can be taken
off, exchanged or trained at any time, and one model serves every method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from b4m.errors import B4MError


class AdaptedModel(nn.Module):
    """A frozen model with named sets of deltas, of which one or none is in use.

    The deltas are submodules, so DDP, `.to()` and `parameters()` see them; the model's own
    parameters are set to need no gradient. It is called as the model is. With gradient
    checkpointing, keep one set in use from forward to backward: the forward runs again in between.

    Args:
        model: any module with named linears: a UNet, a transformer, a text encoder.
        deltas: by module path of the linear; becomes the set "merged", which is then in use.

    Raises:
        B4MError: when a delta names a module that the model lacks, or has another shape.
    """

    def __init__(self, model: nn.Module, deltas: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.model = model
        self.model.requires_grad_(False)
        self.sets = nn.ModuleDict()
        self.active: str | None = None
        self._hooks: dict[str, RemovableHandle] = {}
        self.add("merged", deltas)
        self.use("merged")

    def add(self, name: str, deltas: Mapping[str, nn.Module]) -> None:
        """Add (or replace) a named set of deltas; `use` puts it to work."""
        kinds = (nn.Linear, nn.Conv2d)
        linears = {n: m for n, m in self.model.named_modules() if isinstance(m, kinds)}
        unknown = [layer for layer in deltas if layer not in linears]
        if unknown:
            raise B4MError(
                f"{len(unknown)} of {len(deltas)} layers are not linears of this base, e.g. "
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

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model outputs with the set in use."""
        return self.model(*args, **kwargs)

    def remove(self) -> nn.Module:
        """Take every hook off and return the model as it was, still without gradients."""
        for handle in self._hooks.values():
            handle.remove()
        self._hooks.clear()
        self.active = None
        return self.model

    def _set(self, name: str) -> nn.ModuleDict:
        active_set = self.sets[name]
        assert isinstance(active_set, nn.ModuleDict)
        return active_set

    def _hook(self, layer: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        key = _key(layer)

        def add_delta(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if self.active is None:
                return output
            deltas = self._set(self.active)
            if key not in deltas:
                return output
            if isinstance(module, nn.Conv2d):
                y_BLO = deltas[key](_patches(module, inputs[0]))
                return output + y_BLO.mT.reshape(output.shape).to(output.dtype)
            return output + deltas[key](inputs[0]).to(output.dtype)

        return add_delta


def _patches(convolution: nn.Conv2d, x_BCHW: Tensor) -> Tensor:
    """What the kernel sees at each of L places, channel by channel: B x L x (C kernel)."""
    assert not isinstance(convolution.padding, str), "diffusers' models give paddings as numbers"
    return nn.functional.unfold(
        x_BCHW,
        convolution.kernel_size,
        convolution.dilation,
        convolution.padding,
        convolution.stride,
    ).mT


def _check_shape(layer: str, linear: nn.Linear | nn.Conv2d, delta: nn.Module) -> None:
    shape = (getattr(delta, "out_features", None), getattr(delta, "in_features", None))
    expected = tuple(linear.weight.flatten(1).shape)
    if shape != (None, None) and shape != expected:
        raise B4MError(
            f"{layer} is {expected[0]} x {expected[1]} in this base and {shape[0]} x {shape[1]} in "
            "the adapter; is the adapter made for another base?"
        )


def _key(layer: str) -> str:
    return layer.replace(".", "/")  # nn.ModuleDict allows no dots in its keys


def _layer(key: str) -> str:
    return key.replace("/", ".")
