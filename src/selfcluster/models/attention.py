"""What a vision transformer looks at: the attention of its last block from the class token to every patch.

Caron et al. 2021, arXiv 2104.14294, figures 1 and 3. Attention is softmax(q k^T / sqrt(d)) over the tokens, a map a
head. It is computed again from the block's own queries and keys, since fused attention never forms it. So only timm's
plain attention is read: others turn queries and keys by their positions, or have biases of their own.
B images, H heads, T tokens, d channels a head, h x w patches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selfcluster.models.maps import grid_of


@torch.no_grad()
def last_attention(backbone: Any, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Attention of every token to every token in the last block.

    Args:
        backbone: a vision transformer of timm's with `patch_embed`, `cls_token`, `blocks` and, in the last of these, a
            plain `attn`.
        images: (B, C, height, width), normalized.

    Returns:
        (B, H, T, T) float32, rows summing to 1, and the grid (h, w) of the patches, which are the last h * w tokens.

    Raises:
        ValueError: the network has no such attention, or no class token.
    """
    from timm.layers import Attention, PatchEmbed  # seconds, see `backbones.py`

    blocks: Any = getattr(backbone, "blocks", None)
    layer: Any = None if blocks is None else getattr(blocks[-1], "attn", None)
    # the class itself, which takes no positions: a subclass may compute otherwise. A hybrid's patches are of a map
    plain = type(layer) is Attention and isinstance(getattr(backbone, "patch_embed", None), PatchEmbed)
    if not plain:
        raise ValueError(
            f"{type(backbone).__name__}: attention maps need a vision transformer of a supported kind, such as "
            "timm:vit_tiny_patch16_224"
        )
    if getattr(backbone, "cls_token", None) is None:  # the first token may be a register
        raise ValueError("the network has no class token, so there is no attention map of the whole image")
    patch = backbone.patch_embed.patch_size  # (height, width) in pixels
    if any(side % size for side, size in zip(images.shape[-2:], patch, strict=True)):
        raise ValueError(
            f"images of {images.shape[-2]} x {images.shape[-1]} need sides that are a multiple of {patch[0]}"
        )
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    training = backbone.training
    try:
        backbone.eval()(images)
    finally:
        hook.remove()
        backbone.train(training)
    x = seen[0]  # (B, T, channels), already normalized by the block
    qkv = layer.qkv(x).unflatten(2, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, H, T, d)
    q, k = layer.q_norm(qkv[0]).float(), layer.k_norm(qkv[1]).float()
    attention = (q @ k.transpose(2, 3) * layer.scale).softmax(dim=3)
    return attention, grid_of(backbone, images)


def class_maps(attention: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, H, T, T) to (B, H, h, w): what the first token, the class token, takes from each patch."""
    patches = grid[0] * grid[1]
    if attention.shape[3] == patches:
        raise ValueError("the network has no class token, so there is no attention map of the whole image")
    return attention[:, :, 0, -patches:].unflatten(2, grid)


def mass_mask(maps: Tensor, share: float = 0.6) -> Tensor:
    """The fewest patches that hold at least `share` of each map's mass: (..., h, w) to booleans of that shape."""
    flat = maps.flatten(-2)
    order = flat.argsort(dim=-1, descending=True, stable=True)
    ranked = flat.gather(-1, order)
    total = ranked.cumsum(dim=-1)
    before = total - ranked  # mass of the larger ones: a patch is kept while that falls short
    kept = before < share * total[..., -1:]
    return torch.zeros_like(kept).scatter(-1, order, kept).unflatten(-1, maps.shape[-2:])
