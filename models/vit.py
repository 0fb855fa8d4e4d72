"""The image encoder: timm's vision transformer with the parameter names of the official checkpoints.

Legend: B batch, P image tokens (1 + patches), D width, n and m patches of two resolutions.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from utils.errors import InputError

VIT_B_16 = {'patch_size': 16, 'embed_dim': 768, 'depth': 12, 'num_heads': 12, 'mlp_ratio': 4}


def create_vit(image_res: int, shape: Mapping[str, Any] | None = None) -> VisionTransformer:
    """A ViT with random weights that maps images [B, 3, R, R] to tokens [B, P, D], the [CLS] token first.

    shape: values that differ from ViT-B/16. InputError if they do not fit together.
    """
    shape = VIT_B_16 | dict(shape or {})
    if image_res % shape['patch_size']:
        raise InputError(f'image_res {image_res} must be a multiple of vit.patch_size {shape["patch_size"]}')
    if shape['embed_dim'] % shape['num_heads']:
        raise InputError(f'vit.embed_dim {shape["embed_dim"]} must be a multiple of vit.num_heads {shape["num_heads"]}')
    if shape['embed_dim'] * shape['mlp_ratio'] < 1:
        raise InputError(f'vit.mlp_ratio {shape["mlp_ratio"]} leaves the MLP without width; the usual ratio is 4')
    vit = VisionTransformer(img_size=image_res, num_classes=0, global_pool='', qkv_bias=True, **shape)
    nn.init.trunc_normal_(vit.cls_token, std=0.02)
    return vit


def interpolate_pos_embed(checkpoint: Tensor, visual_encoder: nn.Module) -> Tensor:
    """Resize position embeddings to the encoder's grid, bicubic; those of the extra tokens ([CLS]) stay as they are.

    checkpoint: [1, 1 + n, D]; returns [1, 1 + m, D] with m = `visual_encoder.patch_embed.num_patches`. Both grids are
    square.
    """
    num_patches = visual_encoder.patch_embed.num_patches
    num_extra = visual_encoder.pos_embed.shape[1] - num_patches
    old, new = math.isqrt(checkpoint.shape[1] - num_extra), math.isqrt(num_patches)
    if old * old + num_extra != checkpoint.shape[1]:
        raise InputError(
            f'{checkpoint.shape[1]} position embeddings are not a square grid and {num_extra} extra token(s)'
        )
    if old == new:
        return checkpoint
    extra, grid = checkpoint[:, :num_extra], checkpoint[:, num_extra:]
    grid = grid.transpose(1, 2).unflatten(2, (old, old))  # [1, D, old, old]
    grid = F.interpolate(grid, size=(new, new), mode='bicubic', align_corners=False)
    return torch.cat([extra, grid.flatten(2).transpose(1, 2)], dim=1)
