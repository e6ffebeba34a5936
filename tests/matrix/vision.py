"""Models of pictures: timm, torchvision and open_clip, with random weights."""

from __future__ import annotations

from typing import Any

from tests.matrix.entry import BATCH, Built, Entry, calling, ids, random

TALKING = tuple(f"blocks.{number}.attn" for number in range(24))  # CaiT: a learned layer between softmax and product


def of_timm(name: str, **settings: Any) -> Built:
    """A model of timm at its real width, with both of its pictures alike in no place."""
    import timm

    model = timm.create_model(name, pretrained=False, **settings)
    return calling(model, random(BATCH if settings.get("img_size", 0) < 518 else 1, *model.default_cfg["input_size"]))


def of_torchvision(name: str) -> Built:
    """A model of torchvision."""
    import torchvision

    return calling(getattr(torchvision.models, name)(weights=None), random(BATCH, 3, 224, 224))


def of_open_clip() -> Built:
    """CLIP's towers of pictures and of text."""
    import open_clip

    return calling(open_clip.create_model("ViT-B-32", pretrained=None), random(BATCH, 3, 224, 224), ids(49408, 77))


ENTRIES = [
    Entry("timm", "ViT-Ti/16", lambda: of_timm("vit_tiny_patch16_224")),
    Entry("timm", "DINOv2-S/14, 1,370 tokens", lambda: of_timm("vit_small_patch14_dinov2", img_size=518, depth=3)),
    Entry("timm", "EVA-02-Ti/14", lambda: of_timm("eva02_tiny_patch14_224")),
    Entry("timm", "DeiT III-S/16", lambda: of_timm("deit3_small_patch16_224")),
    Entry("timm", "BEiT-B/16", lambda: of_timm("beit_base_patch16_224", depth=4)),
    Entry("timm", "Swin-T", lambda: of_timm("swin_tiny_patch4_window7_224")),
    Entry("timm", "MaxViT-T", lambda: of_timm("maxvit_tiny_tf_224")),
    Entry("timm", "CaiT-XXS24", lambda: of_timm("cait_xxs24_224"), unheard=TALKING),
    Entry("timm", "XCiT-N12 (between channels)", lambda: of_timm("xcit_nano_12_p16_224")),
    Entry("torchvision", "ViT-B/16", lambda: of_torchvision("vit_b_16"), fused=True),
    Entry("torchvision", "Swin-T", lambda: of_torchvision("swin_t")),
    Entry("open_clip_torch", "CLIP ViT-B/32, pictures and text", of_open_clip, fused=True),
]
