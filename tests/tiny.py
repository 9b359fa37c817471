"""A run small enough to be taken apart: shared by the tests of the step, the trainer and resuming."""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from moco import recipe
from moco.batch import Batch
from moco.build import build, resolve
from moco.data.augmentation import SMALL
from moco.data.procedural import procedural
from moco.encoder import Encoder, head, trunk
from moco.images import Data
from moco.training.checkpoint import Checkpoints
from moco.training.trainer import Run
from moco.world import Solo, World

CPU = torch.device("cpu")

RECIPE = recipe.Recipe(
    name="tiny",
    encoder=recipe.Encoder(arch="resnet18", width=8, stem="small2", dim=16, bn_group=4),
    views=dataclasses.replace(SMALL, size=16, mean=None, std=None),
    keys=recipe.MomentumKeys(momentum=0.9),
    dictionary=recipe.MomentumQueue(size=40),
    loss=recipe.InfoNCE(temperature=0.1),
    optimizer=recipe.SGD(lr=0.05),
    schedule=recipe.Cosine(),
    monitor=recipe.Monitor(bank=60, queries=20, k=10),
    batch=16,
    precision="float32",
    epochs=2,
    journal_every=3,
    checkpoint_every=4,
)


def tiny_recipe(**changes) -> recipe.Recipe:
    return dataclasses.replace(RECIPE, **changes)


def tiny_data(images: int = 100) -> Data:
    return Data(procedural(images, size=16), procedural(40, size=16, split="test"))


def tiny_run(
    values: recipe.Recipe = RECIPE,
    data: Data | None = None,
    folder: Path = Path("/nowhere"),
    world: World | None = None,
) -> Run:
    """A run as `pretrain` builds it."""
    data = data or tiny_data()
    values = resolve(values, data, CPU)
    world = world or Solo()
    return build(values, data, world, device=CPU, checkpoints=Checkpoints(folder, processes=world.size))


def tiny_encoder(
    dim: int = 8,
    dtype: torch.dtype = torch.float64,
    bn_group: int | None = 4,
    arch: str = "resnet18",
    v3: bool = False,
) -> Encoder:
    torch.manual_seed(0)
    net, features = trunk(arch, width=4, stem="small2", bn_group=bn_group)
    if not v3:
        return Encoder(net, head("linear", features, dim)).to(dtype)
    top = head("mlp", features, dim, hidden=12, norm="all", bn_group=bn_group)
    return Encoder(net, top, head("mlp", dim, dim, hidden=12, norm="hidden", bn_group=bn_group)).to(dtype)


def tiny_batch(count: int = 16, dtype: torch.dtype = torch.float64, step: int = 0, size: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(step)
    views = [torch.randn(count, 3, size, size, generator=generator, dtype=dtype) for _ in range(2)]
    orders = [torch.randperm(count, generator=generator) for _ in range(2)]
    index = torch.randperm(100, generator=generator)[:count]
    return Batch((views[0], views[1]), index, (orders[0], orders[1]), step)


def save_arrays(path: Path, images: int = 100) -> str:
    """Write tiny images and their labels to a file; its path."""
    data = tiny_data(images)
    arrays = {}
    for prefix, source in ("", data.train), ("test_", data.test):
        arrays[f"{prefix}images"] = source.pixels.permute(0, 2, 3, 1).numpy()
        arrays[f"{prefix}labels"] = source.labels.numpy()
    np.savez(path / "images.npz", **arrays)
    return str(path / "images.npz")
