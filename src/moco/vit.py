"""Vision transformers as MoCo v3 starts them: what keeps their training stable, and fixed positions."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


@torch.no_grad()
def start_as_v3(net: nn.Module) -> None:
    """Give a vision transformer of timm the initial values of v3, in place.

    The patch projection is random and stays so ("a trick for improving stability"), positions are
    fixed sines and cosines, fully connected layers are Xavier uniform (the three matrices of queries,
    keys and values each by itself), and biases zero.

    Raises:
        ValueError: if it is no network of patches with positions and one class token.

    Source: Chen et al. 2021, "An Empirical Study of Training Self-Supervised Vision Transformers",
    Section 4, and its released code for the initial values.
    """
    positions, patches = getattr(net, "pos_embed", None), getattr(net, "patch_embed", None)
    projection, token = getattr(patches, "proj", None), getattr(net, "cls_token", None)
    height, width = getattr(patches, "grid_size", (0, 0))
    if (
        not isinstance(positions, nn.Parameter)
        or not isinstance(projection, nn.Conv2d)
        or not isinstance(token, nn.Parameter)
        or positions.shape[1] != 1 + height * width
        or positions.shape[2] % 4
    ):
        raise ValueError(
            "encoder.random_patches needs a vision transformer of timm with a class token, such as "
            f"timm/vit_small_patch16_224, got {type(net).__name__}; leave it off"
        )
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear):
            if name.endswith("qkv"):
                outputs, inputs = module.weight.shape
                bound = math.sqrt(6 / (outputs // 3 + inputs))
                nn.init.uniform_(module.weight, -bound, bound)
            else:
                nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(token, std=1e-6)
    inputs = projection.weight[0].numel()
    bound = math.sqrt(6 / (inputs + projection.out_channels))
    nn.init.uniform_(projection.weight, -bound, bound)
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)
    positions[:, 0] = 0
    positions[0, 1:] = sines_and_cosines(height, width, positions.shape[2])
    for parameter in (positions, *projection.parameters()):
        parameter.requires_grad_(False)


def sines_and_cosines(height: int, width: int, dim: int) -> Float[Tensor, "places dim"]:
    """Positions of a grid of patches, row by row: a quarter each of sine and cosine of row and of column.

    Args:
        height, width: of the grid.
        dim: a multiple of 4.

    Source: Vaswani et al. 2017, in two dimensions as in v3's released code.
    """
    frequencies = 10_000 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    down, across = (places.flatten()[:, None] * frequencies for places in (rows, columns))
    return torch.cat([down.sin(), down.cos(), across.sin(), across.cos()], 1).float()
