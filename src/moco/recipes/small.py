"""Recipes for small images: the released CIFAR-10 demo, and what two processor cores can do."""

from dataclasses import replace

from moco.data.augmentation import SMALL
from moco.recipe import SGD, Cosine, Encoder, InfoNCE, MomentumKeys, MomentumQueue, Monitor, Recipe


def cifar() -> Recipe:
    """The released CIFAR-10 demo in every setting: ResNet-18, K = 4,096, m = 0.99, T = 0.1, 200 epochs.

    Run: moco pretrain cifar --data CIFAR10 --out RUN
    Released: 82.6 % kNN (128-D output, k = 200, T = 0.1), 86.3 % at 400 epochs, 88.7 % at 800. Ours: not run.
    """
    return Recipe(
        name="cifar",
        encoder=Encoder(arch="resnet18", stem="small", head="linear", bn_group=64),
        views=SMALL,
        keys=MomentumKeys(momentum=0.99),
        dictionary=MomentumQueue(size=4096),
        loss=InfoNCE(temperature=0.1),
        optimizer=SGD(lr=0.03, weight_decay=5e-4),
        schedule=Cosine(by_epoch=True, first_epoch=1),
        batch=512,
        epochs=200,
        journal_every=97,
        checkpoint_every=970,
    )


def cifar_symmetric() -> Recipe:
    """The CIFAR-10 demo with the symmetric loss: 85.3 % kNN at 200 epochs as released. Ours: not run.

    Run: moco pretrain cifar-symmetric --data CIFAR10 --out RUN
    The demo sums the two terms and here they are averaged, so the learning rate is doubled and the
    weight decay halved: the same weights, to the bit, at every step.
    """
    return replace(
        cifar(), name="cifar-symmetric", symmetric=True, optimizer=SGD(lr=0.06, weight_decay=2.5e-4)
    )


def cifar_fast() -> Recipe:
    """The CIFAR-10 demo's network to the demo's accuracy in less time; a guess, not run on a GPU.

    Run: moco pretrain cifar-fast --data CIFAR10 --out RUN

    What is meant to save time, of means that the package has anyway: a symmetric loss, which does for
    80 epochs about what 160 do (the demo: "symmetric behaves like 2x epochs") and makes the images' views
    half as often; views of 24 pixels, measured at 32, for 56 % of the work (on two cores they did
    more in equal time, docs/log.md); half as large a learning rate again as `cifar-symmetric`, after
    a warm-up; bfloat16 where the device has it. About 0.45 of the multiplications of `cifar`.
    """
    return replace(
        cifar(),
        name="cifar-fast",
        symmetric=True,
        views=replace(SMALL, size=24, eval_size=32, scale=(0.2, 1.0)),
        optimizer=SGD(lr=0.09, weight_decay=2.5e-4),
        schedule=Cosine(warmup=2),
        epochs=80,
        monitor=Monitor(every=10),
    )


def cpu() -> Recipe:
    """A narrow, shallow ResNet for images of about 32 pixels, on two processor cores.

    Run: moco pretrain cpu --data CIFAR10 --out RUN
    Result: CIFAR-10, kNN (k = 200, T = 0.1) 57.5 % on the head output, 56.6 % on the trunk, against 31.1 %
    and 33.0 % untrained and 41.1 % for raw pixels; three seeds, 8 minutes on two cores (results/cpu.toml).

    Views are 24 pixels: they cost little more than half of 32, and show things at the size they have
    in whole images.
    """
    return replace(
        cifar(),
        name="cpu",
        encoder=Encoder(arch="resnet10", width=16, stem="small", bn_group=32),
        views=replace(SMALL, size=24, eval_size=32, scale=(0.2, 1.0), mean=None, std=None),
        keys=MomentumKeys(momentum=0.995),
        dictionary=MomentumQueue(size=4096, mask_own=True),
        optimizer=SGD(lr=0.06, weight_decay=5e-4),
        schedule=Cosine(warmup=1),
        batch=256,
        epochs=12,
        monitor=Monitor(every=2),
        journal_every=50,
        checkpoint_every=390,
    )


def demo() -> Recipe:
    """A few minutes on two processor cores, on patterns made by program; nothing is downloaded.

    Run: moco pretrain demo --out RUN
    Result: kNN (k = 50, T = 0.1) 40.2 % on the trunk against 19.5 % untrained and 29.7 % for raw pixels;
    nine seeds (results/demo.toml).

    Why not scikit-learn's digits: raw pixels already give 98.3 % there, so nothing could be gained.
    Colour says nothing about the kind of a pattern, but it would tell images apart and spare the
    encoder the rest; so views turn the hue freely and are often grey.
    """
    return replace(
        cpu(),
        name="demo",
        encoder=Encoder(arch="resnet10", width=16, stem="small2", bn_group=32),
        views=replace(SMALL, scale=(0.2, 1.0), hue=0.5, grayscale_probability=0.5, mean=None, std=None),
        keys=MomentumKeys(momentum=0.99),
        dictionary=MomentumQueue(size=2048, mask_own=True),
        schedule=Cosine(warmup=0.5),
        batch=128,
        epochs=8,
        monitor=Monitor(every=1, bank=2000, queries=1000, k=50),
        journal_every=20,
        checkpoint_every=100,
    )
