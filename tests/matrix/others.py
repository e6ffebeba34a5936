"""Models that draw, listen, read proteins and text: diffusers, OpenAI's Whisper, fair-esm and x-transformers, made small."""

from __future__ import annotations

from typing import Any

import torch

from tests.matrix.entry import BATCH, Built, Entry, calling, ids, random

WIDTH, WORDS, SIDE = 64, 7, 16
TALKING = tuple(f"attn_layers.layers.{number}.1.attend" for number in (0, 2))  # heads are mixed after the softmax
STEPS = torch.tensor([10, 500])


def of_unet() -> Built:
    """Stable Diffusion's U-shaped network: each block attends to itself and to the text."""
    from diffusers import UNet2DConditionModel

    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    model = UNet2DConditionModel(
        sample_size=SIDE, block_out_channels=(32, WIDTH), layers_per_block=1, cross_attention_dim=WIDTH,
        attention_head_dim=8, down_block_types=down, up_block_types=up,
    )  # fmt: skip
    return calling(model, random(BATCH, 4, SIDE, SIDE), STEPS, random(BATCH, WORDS, WIDTH))


def of_sd3() -> Built:
    """Stable Diffusion 3.5: picture and text in one sequence, and further attention of the picture alone."""
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=SIDE, in_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=4,
        joint_attention_dim=WIDTH, caption_projection_dim=WIDTH, pooled_projection_dim=WIDTH, out_channels=4,
        pos_embed_max_size=SIDE, qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    return calling(model, random(BATCH, 4, SIDE, SIDE), random(BATCH, WORDS, WIDTH), random(BATCH, WIDTH), STEPS)


def of_flux() -> Built:
    """Flux: blocks of two streams, then of one."""
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=4,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    places = torch.cartesian_prod(torch.zeros(1), torch.arange(8.0), torch.arange(8.0))
    return calling(model, random(BATCH, 64, 4), random(BATCH, WORDS, WIDTH), random(BATCH, WIDTH), STEPS / 1000,
                   places, torch.zeros(WORDS, 3))  # fmt: skip


def of_pixart() -> Built:
    """PixArt, with the padding of the shorter text hidden."""
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=16, num_layers=2, cross_attention_dim=WIDTH, sample_size=SIDE,
        caption_channels=32, use_additional_conditions=False,
    )  # fmt: skip
    mask = torch.arange(WORDS) < torch.tensor([[WORDS], [4]])
    return calling(model, random(BATCH, 4, SIDE, SIDE), random(BATCH, WORDS, 32), STEPS, {"resolution": None,
                   "aspect_ratio": None}, encoder_attention_mask=mask)  # fmt: skip


def of_whisper(sdpa: bool) -> Built:
    """Whisper's encoder and decoder, of the width of its smallest."""
    from whisper import model as library

    sizes = library.ModelDimensions(80, 300, 384, 6, 2, 1000, 64, 384, 6, 2)
    model, call = calling(library.Whisper(sizes), random(BATCH, 80, 600), ids(1000, 12))

    def without() -> Any:
        with library.disable_sdpa():
            return call()

    return model, call if sdpa else without


def of_esm() -> Built:
    """ESM-2 of its smallest width, on sequences of which one is padded."""
    import esm

    alphabet = esm.data.Alphabet.from_architecture("ESM-1b")
    *_, tokens = alphabet.get_batch_converter()([("one", "MKTVRQERLKSIVRIL"), ("two", "KALTARQQE")])
    return calling(esm.model.esm2.ESM2(3, 320, 20, alphabet), tokens, repr_layers=[3])


def of_x_transformers(**settings: Any) -> Built:
    """A decoder of lucidrains' x-transformers."""
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(dim=WIDTH, depth=2, heads=4, attn_dim_head=64, rotary_pos_emb=True, **settings)
    return calling(TransformerWrapper(num_tokens=100, max_seq_len=32, attn_layers=layers), ids(100, 20))


ENTRIES = [
    Entry("diffusers", "UNet2DConditionModel", of_unet),
    Entry("diffusers", "SD3Transformer2DModel", of_sd3),
    Entry("diffusers", "FluxTransformer2DModel", of_flux),
    Entry("diffusers", "PixArtTransformer2DModel", of_pixart),
    Entry("openai-whisper", "Whisper", lambda: of_whisper(sdpa=True)),
    Entry("openai-whisper", "Whisper without SDPA", lambda: of_whisper(sdpa=False)),
    Entry("fair-esm", "ESM-2", of_esm),
    Entry("x-transformers", "Decoder", of_x_transformers),
    Entry("x-transformers", "Decoder, attn_flash", lambda: of_x_transformers(attn_flash=True)),
    Entry("x-transformers", "Decoder, talking heads", lambda: of_x_transformers(attn_post_talking_heads=True), TALKING),
]
