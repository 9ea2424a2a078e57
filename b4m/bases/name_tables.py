"""Bases whose adapter files are known by the names and sizes of their layers, see `bases.named`.

Sources of names and sizes: the models and the converters of checkpoints and of LoRA files in
diffusers 0.42 (`models/transformers`, `loaders/single_file_utils.py`, `lora_conversion_utils.py`),
against which the tests compare them. FLUX.1 and Chroma have the same names and sizes except in
modulation layers, so a file may fit both; its header, if it says, decides.
"""

from __future__ import annotations

from collections.abc import Iterator

from b4m.bases.named import NamedFamily, Whole, split
from b4m.bases.unet_names import kernel_of, unet_names

_DOUBLE = """
[double_blocks.{19} transformer_blocks.{}]
img_attn.qkv attn.to_q attn.to_k attn.to_v
img_attn.proj attn.to_out.0
img_mlp.0 4*ff.net.0.proj
img_mlp.2 ff.net.2
txt_attn.qkv attn.add_q_proj attn.add_k_proj attn.add_v_proj
txt_attn.proj attn.to_add_out
txt_mlp.0 4*ff_context.net.0.proj
txt_mlp.2 ff_context.net.2
[single_blocks.{38} single_transformer_blocks.{}]
linear1 attn.to_q attn.to_k attn.to_v 4*proj_mlp
linear2 proj_out
[]
img_in x_embedder
txt_in context_embedder
final_layer.linear proj_out
"""
_ATTENTION = r"\.attn\.to_[qkv]$"


class Flux1(NamedFamily):
    """FLUX.1 dev, schnell, Kontext, Krea."""

    name = "flux1"
    title = "FLUX.1"
    words = ("flux1", "flux-1", "flux.1")
    widths = {_ATTENTION: (3072,)}
    file_header = {"modelspec.architecture": "flux-1-dev/lora"}
    kohya_header = {"ss_base_model_version": "flux1"}
    table = f"""{_DOUBLE}
time_in.in_layer time_text_embed.timestep_embedder.linear_1
time_in.out_layer time_text_embed.timestep_embedder.linear_2
vector_in.in_layer time_text_embed.text_embedder.linear_1
vector_in.out_layer time_text_embed.text_embedder.linear_2
guidance_in.in_layer time_text_embed.guidance_embedder.linear_1
guidance_in.out_layer time_text_embed.guidance_embedder.linear_2
final_layer.adaLN_modulation.1 ~norm_out.linear
[double_blocks.{{19}} transformer_blocks.{{}}]
img_mod.lin norm1.linear
txt_mod.lin norm1_context.linear
[single_blocks.{{38}} single_transformer_blocks.{{}}]
modulation.lin norm.linear
"""


class Chroma(NamedFamily):
    """Chroma 1: FLUX.1 without modulation layers."""

    name = "chroma"
    title = "Chroma"
    words = ("chroma",)
    widths = {_ATTENTION: (3072,)}
    table = f"""{_DOUBLE}
distilled_guidance_layer.in_proj
distilled_guidance_layer.out_proj
[distilled_guidance_layer.layers.{{5}} distilled_guidance_layer.layers.{{}}]
in_layer linear_1
out_layer linear_2
"""


class Flux2(NamedFamily):
    """FLUX.2 dev and klein."""

    name = "flux2"
    title = "FLUX.2"
    words = ("flux2", "flux-2", "flux.2", "klein")
    widths = {r"\.attn\.(to_[qkv]|to_qkv_mlp_proj)$": (3072, 4096, 6144)}
    table = """
[double_blocks.{8} transformer_blocks.{}]
img_attn.qkv attn.to_q attn.to_k attn.to_v
img_attn.proj attn.to_out.0
img_mlp.0 6*ff.linear_in
img_mlp.2 ff.linear_out
txt_attn.qkv attn.add_q_proj attn.add_k_proj attn.add_v_proj
txt_attn.proj attn.to_add_out
txt_mlp.0 6*ff_context.linear_in
txt_mlp.2 ff_context.linear_out
[single_blocks.{48} single_transformer_blocks.{}]
linear1 9*attn.to_qkv_mlp_proj
linear2 attn.to_out
[]
img_in x_embedder
txt_in context_embedder
time_in.in_layer time_guidance_embed.timestep_embedder.linear_1
time_in.out_layer time_guidance_embed.timestep_embedder.linear_2
guidance_in.in_layer time_guidance_embed.guidance_embedder.linear_1
guidance_in.out_layer time_guidance_embed.guidance_embedder.linear_2
final_layer.linear proj_out
final_layer.adaLN_modulation.1 ~norm_out.linear
single_stream_modulation.lin single_stream_modulation.linear
double_stream_modulation_img.lin double_stream_modulation_img.linear
double_stream_modulation_txt.lin double_stream_modulation_txt.linear
"""


class SD3(NamedFamily):
    """Stable Diffusion 3 and 3.5, medium and large."""

    name = "sd3"
    title = "SD3.5"
    words = ("sd3", "stable-diffusion-v3", "stable-diffusion-3")
    widths = {r"\.attn2?\.(to|add)_[qkv](_proj)?$": (1536, 2432)}
    table = """
[joint_blocks.{38} transformer_blocks.{}]
x_block.attn.qkv attn.to_q attn.to_k attn.to_v
x_block.attn.proj attn.to_out.0
x_block.attn2.qkv attn2.to_q attn2.to_k attn2.to_v
x_block.attn2.proj attn2.to_out.0
x_block.mlp.fc1 ff.net.0.proj
x_block.mlp.fc2 ff.net.2
x_block.adaLN_modulation.1 norm1.linear
context_block.attn.qkv attn.add_q_proj attn.add_k_proj attn.add_v_proj
context_block.attn.proj attn.to_add_out
context_block.mlp.fc1 ff_context.net.0.proj
context_block.mlp.fc2 ff_context.net.2
context_block.adaLN_modulation.1 ~norm1_context.linear
[]
x_embedder.proj pos_embed.proj
context_embedder
t_embedder.mlp.0 time_text_embed.timestep_embedder.linear_1
t_embedder.mlp.2 time_text_embed.timestep_embedder.linear_2
y_embedder.mlp.0 time_text_embed.text_embedder.linear_1
y_embedder.mlp.2 time_text_embed.text_embedder.linear_2
final_layer.linear proj_out
final_layer.adaLN_modulation.1 ~norm_out.linear
"""


class QwenImage(NamedFamily):
    """Qwen-Image and its edit models, whose original code is diffusers'."""

    name = "qwen-image"
    title = "Qwen-Image"
    words = ("qwen",)
    widths = {_ATTENTION: (3072,)}
    table = """
[transformer_blocks.{60}]
attn.to_q
attn.to_k
attn.to_v
attn.to_out.0
attn.add_q_proj
attn.add_k_proj
attn.add_v_proj
attn.to_add_out
img_mlp.net.0.proj
img_mlp.net.2
txt_mlp.net.0.proj
txt_mlp.net.2
img_mod.1
txt_mod.1
[]
img_in
txt_in
proj_out
norm_out.linear
time_text_embed.timestep_embedder.linear_1
time_text_embed.timestep_embedder.linear_2
"""


_Z_BLOCK = """
attention.qkv attention.to_q attention.to_k attention.to_v
attention.out attention.to_out.0
feed_forward.w1
feed_forward.w2
feed_forward.w3
adaLN_modulation.0
"""


class ZImage(NamedFamily):
    """Z-Image, base and turbo."""

    name = "z-image"
    title = "Z-Image"
    words = ("z-image", "zimage", "z_image")
    widths = {r"\.attention\.to_[qkv]$": (3840,)}
    table = f"""
[layers.{{30}}]{_Z_BLOCK}
[noise_refiner.{{2}}]{_Z_BLOCK}
[context_refiner.{{2}}]{_Z_BLOCK}
[]
x_embedder all_x_embedder.2-1
final_layer.linear all_final_layer.2-1.linear
final_layer.adaLN_modulation.1 all_final_layer.2-1.adaLN_modulation.1
t_embedder.mlp.0
t_embedder.mlp.2
cap_embedder.1
"""


class Wan(NamedFamily):
    """Wan 2.1 and 2.2."""

    name = "wan"
    title = "Wan"
    words = ("wan",)
    widths = {r"^blocks\.\d+\.attn[12]\.to_q$": (1536, 3072, 5120)}
    table = """
[blocks.{40}]
self_attn.q attn1.to_q
self_attn.k attn1.to_k
self_attn.v attn1.to_v
self_attn.o attn1.to_out.0
cross_attn.q attn2.to_q
cross_attn.k attn2.to_k
cross_attn.v attn2.to_v
cross_attn.o attn2.to_out.0
cross_attn.k_img attn2.add_k_proj
cross_attn.v_img attn2.add_v_proj
ffn.0 ffn.net.0.proj
ffn.2 ffn.net.2
[]
patch_embedding
text_embedding.0 condition_embedder.text_embedder.linear_1
text_embedding.2 condition_embedder.text_embedder.linear_2
time_embedding.0 condition_embedder.time_embedder.linear_1
time_embedding.2 condition_embedder.time_embedder.linear_2
time_projection.1 condition_embedder.time_proj
img_emb.proj.1 condition_embedder.image_embedder.ff.net.0.proj
img_emb.proj.3 condition_embedder.image_embedder.ff.net.2
head.head proj_out
"""


_KREA_BLOCK = """
attn.wq attn.to_q
attn.wk attn.to_k
attn.wv attn.to_v
attn.wo attn.to_out.0
attn.gate attn.to_gate
mlp.gate ff.gate
mlp.up ff.up
mlp.down ff.down
"""


class Krea2(NamedFamily):
    """Krea 2."""

    name = "krea2"
    title = "Krea 2"
    words = ("krea2", "krea-2", "krea 2")
    widths = {r"^transformer_blocks\.\d+\.attn\.to_[qkv]$": (6144,)}
    table = f"""
[blocks.{{28}} transformer_blocks.{{}}]{_KREA_BLOCK}
[txtfusion.layerwise_blocks.{{2}} text_fusion.layerwise_blocks.{{}}]{_KREA_BLOCK}
[txtfusion.refiner_blocks.{{2}} text_fusion.refiner_blocks.{{}}]{_KREA_BLOCK}
[]
txtfusion.projector text_fusion.projector
first img_in
last.linear final_layer.linear
tmlp.0 time_embed.linear_1
tmlp.2 time_embed.linear_2
tproj.1 time_mod_proj
txtmlp.1 txt_in.linear_1
txtmlp.3 txt_in.linear_2
"""


class Anima(NamedFamily):
    """Anima, and Cosmos Predict 2, whose denoiser it has."""

    name = "anima"
    title = "Anima"
    words = ("anima", "cosmos")
    widths = {r"^transformer_blocks\.\d+\.attn[12]\.to_q$": (2048, 5120)}
    marks = r"^(llm_adapter|text_conditioner)[._]"
    table = """
[blocks.{36} transformer_blocks.{}]
self_attn.q_proj attn1.to_q
self_attn.k_proj attn1.to_k
self_attn.v_proj attn1.to_v
self_attn.output_proj attn1.to_out.0
cross_attn.q_proj attn2.to_q
cross_attn.k_proj attn2.to_k
cross_attn.v_proj attn2.to_v
cross_attn.output_proj attn2.to_out.0
mlp.layer1 ff.net.0.proj
mlp.layer2 ff.net.2
adaln_modulation_self_attn.1 norm1.linear_1
adaln_modulation_self_attn.2 norm1.linear_2
adaln_modulation_cross_attn.1 norm2.linear_1
adaln_modulation_cross_attn.2 norm2.linear_2
adaln_modulation_mlp.1 norm3.linear_1
adaln_modulation_mlp.2 norm3.linear_2
[]
final_layer.linear proj_out
final_layer.adaln_modulation.1 norm_out.linear_1
final_layer.adaln_modulation.2 norm_out.linear_2
x_embedder.proj.1 patch_embed.proj
t_embedder.1.linear_1 time_embed.t_embedder.linear_1
t_embedder.1.linear_2 time_embed.t_embedder.linear_2
"""


class SD1(NamedFamily):
    """Stable Diffusion 1.x."""

    name = "sd1"
    title = "SD1.5"
    root = "unet"
    words = ("sd_v1", "stable-diffusion-v1")
    widths = {r"\.attn2\.to_[kv]$": (768,)}
    file_header = {"modelspec.architecture": "stable-diffusion-v1/lora"}
    kohya_header = {"ss_base_model_version": "sd_v1", "ss_v2": "False"}
    kohya_original = False
    convolved = True

    def entries(self) -> Iterator[Whole]:
        """Every linear and convolution of the UNet."""
        for name, ldm in unet_names((True, True, True, False), 1).items():
            yield Whole(ldm, (name,), (0,))

    def kernel(self, network: str, module: str) -> tuple[int, ...]:
        """Kernel of a convolution; () for a linear."""
        whole = None if network or "@" in module else self.wholes.get(split(module)[1])
        if whole is not None:
            return kernel_of(whole.parts[0], self.convolved)
        return super().kernel(network, module)


class SD2(SD1):
    """Stable Diffusion 2.x: SD1.5's UNet with a wider text and linear projections."""

    name = "sd2"
    title = "SD2.1"
    words = ("sd_v2", "stable-diffusion-v2")
    widths = {r"\.attn2\.to_[kv]$": (1024,)}
    file_header = {"modelspec.architecture": "stable-diffusion-v2-768-v/lora"}
    kohya_header = {"ss_base_model_version": "sd_v2", "ss_v2": "True"}
    convolved = False


class HunyuanVideo(NamedFamily):
    """HunyuanVideo."""

    name = "hunyuan-video"
    title = "HunyuanVideo"
    words = ("hunyuan_video", "hunyuanvideo")
    marks = (
        r"^(double_blocks\.\d+\.(img|txt)_(attn|mlp|mod)_|token_refiner|txt_in\.individual_token)"
    )


class LTX(NamedFamily):
    """LTX-Video and LTX-2."""

    name = "ltx"
    title = "LTX-Video"
    words = ("ltx",)
    marks = r"^(transformer_blocks[._]\d+[._](audio_)?(attn[12]|ff)[._]|patchify_proj|adaln_single)"
    widths = {r"^transformer_blocks[._]\d+[._]attn1[._]to_[qkv]$": (2048, 4096)}


class HiDream(NamedFamily):
    """HiDream-I1."""

    name = "hidream"
    title = "HiDream"
    words = ("hidream",)
    marks = r"^(double|single)_stream_blocks[._]\d+[._]block[._]"


class Lumina2(NamedFamily):
    """Lumina Image 2."""

    name = "lumina2"
    title = "Lumina 2"
    words = ("lumina",)
    marks = r"^(layers|noise_refiner|context_refiner)[._]\d+[._](attention|attn|feed_forward)[._]"
    widths = {r"[._](attention|attn)[._](qkv|to_q)$": (2304,)}


TABLES: tuple[NamedFamily, ...] = (
    SD1(), SD2(), Flux1(), Chroma(), SD3(), Flux2(), QwenImage(), ZImage(), Wan(), Krea2(),
    Anima(), HunyuanVideo(), LTX(), HiDream(), Lumina2(),
)  # fmt: skip
