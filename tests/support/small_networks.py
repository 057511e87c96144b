"""Folders of small relatives of the published networks, as the hub has them, with random weights of order 1.

`WRITERS` has one for each encoder; it writes the folder that the encoder reads below a `--weights-dir`, and returns the
network that was saved.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from refavs.machine.torchvision_shim import ensure_torchvision
from tests.extract.hf_weights import randomise

Writer = Callable[[Path], Any]
VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}


def saved(model: Any, folder: Path, **preprocessor: Any) -> Any:
    """Saves a network of transformers, and what the hub says of its preprocessing."""
    randomise(model.eval(), 0)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return model


def write_dinov2(root: Path, name: str, registers: bool = False) -> Any:
    ensure_torchvision()
    from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    sizes = VIT | {"image_size": 70, "patch_size": 14}
    model = (Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes)) if registers
             else Dinov2Model(Dinov2Config(**sizes)))  # fmt: skip
    return saved(model, root / name, resample=3)


def write_dinov3(root: Path, name: str, **sizes: Any) -> Any:
    ensure_torchvision()
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(**VIT, intermediate_size=64, patch_size=16, num_register_tokens=4, **sizes)
    return saved(DINOv3ViTModel(config), root / f"{name}-pretrain-lvd1689m", resample=2)


def write_clip(root: Path, name: str, patch: int) -> Any:
    ensure_torchvision()
    from transformers import CLIPConfig, CLIPModel

    vision = VIT | {"intermediate_size": 64, "image_size": 4 * patch, "patch_size": patch, "projection_dim": 24}
    text = VIT | {"intermediate_size": 64, "vocab_size": 50, "projection_dim": 24}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    return saved(model, root / name, resample=3, image_mean=[0.48, 0.46, 0.41], image_std=[0.27, 0.26, 0.28])


def write_pvt(root: Path, name: str) -> Any:
    ensure_torchvision()
    from transformers import PvtV2Config, PvtV2ForImageClassification

    config = PvtV2Config(depths=[1, 2, 1, 1], hidden_sizes=[8, 16, 40, 64], mlp_ratios=[4, 4, 4, 4])
    return saved(PvtV2ForImageClassification(config), root / name.replace("-", "_"), resample=3)


def write_sam(root: Path, name: str) -> Any:
    ensure_torchvision()
    from transformers import SamConfig, SamModel

    vision = VIT | {"image_size": 128, "patch_size": 16, "window_size": 3, "global_attn_indexes": [1],
                    "output_channels": 16, "num_pos_feats": 8}  # fmt: skip
    model = SamModel(SamConfig(
        vision_config=vision, prompt_encoder_config={"hidden_size": 16, "image_size": 128},
        mask_decoder_config={"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
    ))  # fmt: skip
    return saved(model, root / name)


def write_sam2(root: Path, name: str) -> Any:
    """A model for videos, as the hub's checkpoints are."""
    ensure_torchvision()
    from transformers import Sam2VideoConfig, Sam2VideoModel

    backbone = {
        "model_type": "sam2_hiera_det_model", "image_size": [128, 128], "hidden_size": 8, "num_attention_heads": 1,
        "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 2, 4, 8], "window_size_per_stage": [4, 4, 4, 4],
        "global_attention_blocks": [3],
    }  # fmt: skip
    vision = {"model_type": "sam2_vision_model", "backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8],
              "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]]}  # fmt: skip
    config = Sam2VideoConfig(
        vision_config=vision, prompt_encoder_config={"image_size": 128}, image_size=128,
        memory_attention_rope_feat_sizes=[8, 8], memory_attention_num_layers=1,
    )  # fmt: skip
    return saved(Sam2VideoModel(config), root / name)


def write_mask2former(root: Path, name: str) -> Any:
    """A Swin whose windows fill no map, so that they are padded."""
    ensure_torchvision()
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    backbone = SwinConfig(
        image_size=224, embed_dim=16, depths=[2, 2, 2, 2], num_heads=[1, 2, 2, 4], window_size=5, drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=24, hidden_dim=32, num_attention_heads=4,
        encoder_layers=2, encoder_feedforward_dim=64, decoder_layers=2, dim_feedforward=32, num_queries=5, dropout=0.0,
    )  # fmt: skip
    return saved(Mask2FormerForUniversalSegmentation(config), root / name, size={"height": 96, "width": 96})


def write_timm(root: Path, name: str) -> Any:
    ensure_torchvision()
    import timm

    model = timm.create_model(name).eval()
    randomise(model, 0)
    (root / name).mkdir(parents=True)
    save_file(model.state_dict(), root / name / "model.safetensors")
    return model


WRITERS: dict[str, Writer] = {
    **{name: partial(write_dinov2, name=name) for name in ("dinov2-small", "dinov2-base", "dinov2-large")},
    **{name: partial(write_dinov2, name=name, registers=True)
       for name in (f"dinov2-with-registers-{size}" for size in ("small", "base", "large"))},
    **{name: partial(write_dinov3, name=name) for name in ("dinov3-vits16", "dinov3-vitb16", "dinov3-vitl16")},
    "dinov3-vith16plus": partial(write_dinov3, name="dinov3-vith16plus", use_gated_mlp=True, hidden_act="silu"),
    **{f"clip-vit-{size}-patch{patch}": partial(write_clip, name=f"clip-vit-{size}-patch{patch}", patch=patch)
       for size, patch in (("base", 32), ("base", 16), ("large", 14))},
    **{name: partial(write_pvt, name=name) for name in ("pvt-v2-b2", "pvt-v2-b5")},
    **{name: partial(write_sam, name=name) for name in ("sam-vit-base", "sam-vit-large", "sam-vit-huge")},
    **{name: partial(write_sam2, name=name)
       for name in (f"sam2.1-hiera-{size}" for size in ("tiny", "small", "base-plus", "large"))},
    **{name: partial(write_mask2former, name=name)
       for name in (f"mask2former-swin-{size}-coco-panoptic" for size in ("tiny", "small", "base", "large"))},
    **{f"timm:{name}": partial(write_timm, name=name)
       for name in ("test_resnet.r160_in1k", "test_vit.r160_in1k", "swin_tiny_patch4_window7_224.ms_in1k")},
}  # fmt: skip
