"""Trainable low-rank pairs on a base's text encoders.

A base knows a look by its words, so a new look is learned best where words get their meaning. The
pairs of all attention and MLP linears are trained together with the denoiser's and stay in the same
file. Captions are then encoded at every step instead of once.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from b4m.adapters.attach import AdaptedModel
from b4m.adapters.deltas import LoRADelta
from b4m.adapters.lowrank import LowRank
from b4m.bases.base import Base, Conditioning
from b4m.bases.sampling import text_module
from b4m.errors import B4MError
from b4m.training.optimizers import Learnable, build
from b4m.training.run import Run, exported
from b4m.training.settings import TextTraining, TrainSettings
from b4m.training.state import ParameterGroup
from b4m.training.training_set import Shown


class TextLayers:
    """Pairs on the chosen text encoders of a base, and what they make of captions.

    Args:
        run: base, ranks, learning rates and the randomness of the start.

    Raises:
        B4MError: if the base has no text encoders that adapters may have layers of, or not so many.
    """

    def __init__(self, run: Run[TrainSettings]) -> None:
        self.base: Base = run.base
        settings = run.settings
        self._by_network: dict[str, dict[str, LoRADelta]] = {}
        linears = self.base.text_linears()
        for network, rank in _ranks(self.base, settings, settings.rank).items():
            self._by_network[network] = {
                name: LoRADelta.start(
                    linear.out_features, linear.in_features, rank, run.generator(name)
                ).to(self.base.device)
                for name, linear in linears.items()
                if name.startswith(f"{network}.")
            }
        self.deltas = {k: v for part in self._by_network.values() for k, v in part.items()}
        last = max(1, round(settings.text_stop * settings.steps))
        until = last if last < settings.steps else None
        self.groups = [
            _group(deltas, settings, lr, until) for lr, deltas in self._by_rate(settings).items()
        ]

    def _by_rate(self, settings: TextTraining) -> Mapping[float, Mapping[str, LoRADelta]]:
        """The pairs by their learning rate; pairs of one rate are clipped together."""
        second = list(self.base.encoders)[1:2]
        rates: dict[float, dict[str, LoRADelta]] = {}
        for network, deltas in self._by_network.items():
            own = settings.text_lr_2 if network in second else 0
            rates.setdefault(own or settings.text_lr, {}).update(deltas)
        return rates

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hang the pairs on the encoders for the block's time."""
        self.base.to_device()
        with ExitStack() as stack:
            for network, deltas in self._by_network.items():
                encoder = self.base.encoders[network]
                layers = {
                    text_module(encoder, name.removeprefix(f"{network}.")): delta
                    for name, delta in deltas.items()
                }
                stack.callback(AdaptedModel(encoder, layers).remove)
            yield

    def encode(self, shown: Shown) -> Conditioning:
        """The captions' conditioning under the pairs, with gradients.

        What is not made of captions (sizes, the unconditional rows) stays that of the examples.
        """
        encoded = self.base.encode_prompts(shown.captions)
        if not bool(shown.kept_B.all()):
            encoded = encoded.where(shown.kept_B, shown.text)
        return Conditioning({**shown.text.tensors, **encoded.tensors})

    def exported(self) -> dict[str, LowRank]:
        """The trained pairs in float32 on the CPU."""
        return exported(self.deltas)


def _ranks(base: Base, settings: TextTraining, rank: int) -> dict[str, int]:
    """Rank by encoder, of those that are trained."""
    networks = list(base.encoders)
    title = base.family.title
    if not base.text_linears():
        raise B4MError(f"{title} has no text encoders to train; leave text_lr")
    if settings.text_encoders == "second" and len(networks) < 2:
        raise B4MError(f"{title} has one text encoder; set text_encoders to first")
    first = settings.text_rank or rank
    ranks = dict.fromkeys(networks, first)
    if len(networks) > 1:
        ranks[networks[1]] = settings.text_rank_2 or first
    chosen = {"all": networks, "first": networks[:1], "second": networks[1:2]}
    return {name: ranks[name] for name in chosen[settings.text_encoders]}


def _group(
    deltas: Mapping[str, LoRADelta], settings: TrainSettings, lr: float, until: int | None
) -> ParameterGroup:
    parameters = {
        f"{layer}.{factor}": parameter
        for layer, delta in deltas.items()
        for factor, parameter in delta.named_parameters()
    }
    learnable = Learnable.of(deltas.values(), "the text encoders")
    return ParameterGroup(parameters, build(settings, learnable, lr), until)


@contextmanager
def text_layers(run: Run[TrainSettings]) -> Iterator[TextLayers | None]:
    """The run's text layers, attached, or None if it trains none."""
    if not run.settings.text_lr:
        yield None
        return
    layers = TextLayers(run)
    with layers.attached():
        yield layers
