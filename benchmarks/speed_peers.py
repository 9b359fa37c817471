"""Tables of `speed.py`: other projects' way of the same thing at the same precision, where installed.

What of theirs is used is what their documentation shows for Momentum Contrast. Their own draws of
views and shuffles differ from ours; steps begin from the same weights, keys and batch.
"""

import copy
import functools
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import resnet as torchvision_resnet

from measured import Measured, alternate
from moco import recipe
from moco.batch import Batch
from moco.data.augmentation import SMALL, V2
from moco.data.loader import Loader
from moco.data.procedural import procedural
from moco.data.views import Views
from moco.evaluate.knn import knn_predict
from moco.training.step import step
from moco.world import Solo
from speed_parts import clusters
from speed_step import SMALL_STEP, Ours
from speed_views import errors_apart, photographs


def lightly_step(rounds: int) -> Measured:
    from lightly.loss import NTXentLoss
    from lightly.models.utils import (
        batch_shuffle,
        batch_unshuffle,
        deactivate_requires_grad,
        update_momentum,
    )

    values = replace(
        SMALL_STEP, encoder=replace(SMALL_STEP.encoder, bn_group=None),
        keys=recipe.MomentumKeys(0.99, shuffle=False),
    )  # fmt: skip
    images = procedural(256, size=32)
    run: Any = Ours(values)
    f_q = torchvision_resnet.resnet18(num_classes=128)
    f_q.conv1, f_q.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    head = {f"fc.{n}": v for n, v in run.f_q.head.state_dict().items()}
    f_q.load_state_dict({**run.f_q.trunk.state_dict(), **head})
    f_k = copy.deepcopy(f_q)
    deactivate_requires_grad(f_k)
    keys = run.dictionary.get_buffer("keys")
    criterion = NTXentLoss(temperature=0.1, memory_bank_size=(len(keys), 128))
    criterion.memory_bank.bank = keys.clone()
    group = {k: run.optimizer.param_groups[0][k] for k in ("lr", "momentum", "weight_decay")}
    optimizer = torch.optim.SGD(f_q.parameters(), **group)

    def theirs(batch: Batch) -> float:
        first, second = (view.contiguous() for view in batch.views)
        update_momentum(f_q, f_k, m=0.99)
        q = f_q(first)
        with torch.no_grad():
            shuffled, order = batch_shuffle(second)
            k = batch_unshuffle(f_k(shuffled), order)
        loss = criterion(q, k)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    def ours(batch: Batch) -> float:
        return step(run, batch, Solo()).loss.item()

    batch = Loader(images, Views(SMALL), values.batch).batch(0)
    apart = abs(theirs(batch) - ours(batch))
    assert apart < 1e-3, f"losses differ by {apart:.4f} at the first step"
    times = alternate(lambda: theirs(batch), lambda: ours(batch), rounds)
    return Measured(
        "step: ResNet-18 at 32 pixels, batch 64, K = 4,096, one group of normalisation", times,
        f"losses of the first step apart by {apart:.0e}", 1.0, other=f"lightly {version('lightly')}",
    )  # fmt: skip


def kornia_aug32(rounds: int) -> Measured:
    import kornia.augmentation as K

    a, count = SMALL, 128
    source = procedural(256, size=32)
    loader = Loader(source, Views(a), count)
    theirs = K.AugmentationSequential(
        K.RandomResizedCrop((a.size, a.size), scale=a.scale),
        K.ColorJitter(a.brightness, a.contrast, a.saturation, a.hue, p=a.jitter_probability),
        K.RandomGrayscale(p=a.grayscale_probability),
        K.RandomHorizontalFlip(),
        K.Normalize(torch.tensor(a.mean), torch.tensor(a.std)),
        same_on_batch=False,
    )
    images = source.pixels[:count]
    steps = iter(range(10**6))
    times = alternate(
        lambda: [theirs(images.float() / 255) for _ in range(2)],
        lambda: loader.batch(next(steps) % 2),
        rounds,
    )
    return Measured(
        "two views of 128 images of 32 pixels", times, "not compared: crops without antialiasing there", None,
        other=f"kornia {version('kornia')}",
    )  # fmt: skip


def albumentations_views224(rounds: int) -> Measured:
    import albumentations as A
    import cv2

    a, count = V2, 64
    assert a.mean is not None
    made = A.Compose(
        [
            A.RandomResizedCrop((a.size, a.size), scale=a.scale),
            A.ColorJitter(a.brightness, a.contrast, a.saturation, a.hue, p=a.jitter_probability),
            A.ToGray(p=a.grayscale_probability),
            A.GaussianBlur(blur_limit=(0, 0), sigma_limit=a.blur_sigma, p=a.blur_probability),
            A.HorizontalFlip(),
            A.Normalize(a.mean, a.std),
        ]
    )
    with photographs(count) as (files, source):
        loader = Loader(source, Views(a), count, workers=1)
        steps = iter(range(10**6))

        def theirs() -> Tensor:
            views = []
            for file in files:
                found = cv2.imread(str(file))
                assert found is not None
                image = cv2.cvtColor(found, cv2.COLOR_BGR2RGB)
                views += [made(image=image)["image"] for _ in range(2)]
            return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).contiguous()

        def ours() -> tuple[Tensor, Tensor]:
            return loader.batch(next(steps)).views

        apart = errors_apart(theirs, lambda: torch.cat(ours()))
        times = alternate(theirs, ours, rounds)
    return Measured(
        "64 JPEGs of 500 x 375 to two v2 views of 224, all on the CPU", times,
        f"crops without antialiasing there: views {apart:.0f} standard errors apart", None,
        other=f"albumentations {version('albumentations')}",
    )  # fmt: skip


def faiss_knn(rounds: int) -> Measured:
    import faiss

    faiss.omp_set_num_threads(1)
    x, labels = clusters()
    bank, queries, of_bank = x[:50_000], x[50_000:], labels[:50_000]

    def theirs() -> Tensor:
        index = faiss.IndexFlatIP(bank.shape[1])
        index.add(bank.numpy())
        best, voters = map(torch.from_numpy, index.search(queries.numpy(), 200))
        votes = torch.zeros(len(queries), 10)
        return votes.scatter_add_(1, of_bank[voters], ((best - 1) / 0.1).exp()).argmax(1)

    ours = functools.partial(knn_predict, queries, bank, of_bank)
    same = (theirs() == ours()).double().mean().item()
    assert same >= 0.999, f"{100 * same:.2f} % equal predictions"
    return Measured(
        "kNN, 10,000 queries, 50,000 voters, 512 numbers", alternate(theirs, ours, rounds),
        f"{100 * same:.2f} % equal predictions", None, other=f"faiss {version('faiss-cpu')}",
    )  # fmt: skip
