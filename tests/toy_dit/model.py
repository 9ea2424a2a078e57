"""The toy as a base: a transformer under flow matching, two CLIP text encoders, AutoencoderKL."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from b4m.bases import latents
from b4m.bases.base import Base, Conditioning, StepCallback
from b4m.bases.family import Family
from b4m.bases.noising import FlowMatching
from tests.toy_dit.family import FAMILY

TRAIN_STEPS = 1000  # the transformer is told t times this


@dataclass(eq=False, kw_only=True)
class ToyBase(Base):
    """The parts of a StableDiffusion3Pipeline without T5."""

    family: ClassVar[Family] = FAMILY
    pipe: Any

    @property
    def model(self) -> nn.Module:
        return self.pipe.transformer

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        return {name: getattr(self.pipe, name) for name in self.family.networks[1:]}

    @property
    def helpers(self) -> tuple[nn.Module, ...]:
        return (self.pipe.vae, *self.encoders.values())

    @property
    def noising(self) -> FlowMatching:
        return FlowMatching(logit_normal=True)

    @property
    def pixels(self) -> int:
        return self.latent_shape[-1] * self.pipe.vae_scale_factor

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        config = self.pipe.transformer.config
        return config.in_channels, config.sample_size, config.sample_size

    def linears(self) -> dict[str, nn.Linear]:
        return {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and self.family.known(self.family.denoiser, name)
        }

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        hidden_BTD, _, pooled_BP, _ = self.pipe.encode_prompt(
            list(prompts), None, None, do_classifier_free_guidance=False, max_sequence_length=0
        )
        return Conditioning({"hidden": hidden_BTD, "pooled": pooled_BP})

    def encode_images(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        return latents.encode(self.pipe.vae, self.device, images)

    def decode_latents(self, latents_BCHW: Tensor) -> list[Image.Image]:
        return latents.decode(self.pipe.vae, self.device, latents_BCHW)

    def predict(
        self, model: nn.Module, latents_BCHW: Tensor, t_B: Tensor, conditioning: Conditioning
    ) -> Tensor:
        output = model(
            latents_BCHW.to(self.dtype),
            encoder_hidden_states=conditioning.tensors["hidden"].to(self.dtype),
            pooled_projections=conditioning.tensors["pooled"].to(self.dtype),
            timestep=t_B * TRAIN_STEPS,
            return_dict=False,
        )
        return output[0].float()

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int,
        guidance: float,
        negative: str,
        before_step: StepCallback,
    ) -> list[Image.Image]:
        """Euler's method from noise at t = 1 to the image at t = 0, over the scheduler's times."""
        texts = self.encode_prompts([negative] * len(prompts) + list(prompts))
        self.pipe.scheduler.set_timesteps(steps)
        times = self.pipe.scheduler.sigmas
        noises = [
            torch.randn(self.latent_shape, generator=torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
        x_BCHW = torch.stack(noises).to(self.device)
        for index in range(steps):
            before_step(index)
            t_B = times[index].repeat(2 * len(prompts)).to(self.device)
            output = self.predict(self.model, x_BCHW.repeat(2, 1, 1, 1), t_B, texts)
            without_BCHW, with_BCHW = output.chunk(2)
            v_BCHW = without_BCHW + guidance * (with_BCHW - without_BCHW)
            x_BCHW = x_BCHW + (times[index + 1] - times[index]) * v_BCHW
        return self.decode_latents(x_BCHW)
