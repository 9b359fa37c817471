"""The papers' settings for ImageNet-1M and Instagram-1B."""

from dataclasses import replace

from moco.data.augmentation import V1, V2, V3
from moco.recipe import (
    LARS,
    AdamW,
    Cosine,
    Encoder,
    Exponential,
    InBatch,
    InfoNCE,
    MomentumKeys,
    MomentumQueue,
    Monitor,
    Recipe,
    Step,
)


def v1() -> Recipe:
    """MoCo v1 on ImageNet-1M: ResNet-50, K = 65,536, m = 0.999, T = 0.07, 200 epochs.

    Run: moco pretrain v1 --data IMAGENET --out RUN
    Paper: 60.6 % linear top-1, about 53 hours on 8 V100. Ours: not run.
    Source: MoCo, Section 4.1; released code: 60.8 ± 0.2 over five runs.
    """
    return Recipe(
        name="v1",
        encoder=Encoder(arch="resnet50", head="linear", dim=128, bn_group=32),
        views=V1,
        keys=MomentumKeys(momentum=0.999),
        dictionary=MomentumQueue(size=65536),
        loss=InfoNCE(temperature=0.07),
        schedule=Step(milestones=(120, 160), factor=0.1),
        batch=256,
        epochs=200,
    )


def v2() -> Recipe:
    """MoCo v2 on ImageNet-1M: v1 with an MLP head, blur, T = 0.2 and a cosine schedule.

    Run: moco pretrain v2 --data IMAGENET --out RUN (add --epochs 800 for the longer schedule)
    Paper: 67.5 % linear top-1 at 200 epochs, 71.1 % at 800. Ours: not run.
    Source: Chen et al. 2020, "Improved Baselines with Momentum Contrastive Learning".
    """
    base = v1()
    return replace(
        base,
        name="v2",
        encoder=replace(base.encoder, head="mlp"),
        views=V2,
        loss=InfoNCE(temperature=0.2),
        schedule=Cosine(by_epoch=True),
    )


def v3() -> Recipe:
    """MoCo v3 with ResNet-50 on ImageNet-1M: no queue, batch 4,096, a prediction head, LARS, 100 epochs.

    Run: moco pretrain v3 --data IMAGENET --out RUN
    Released: 68.9 % linear top-1 at 100 epochs; 72.8 % at 300 (--epochs 300 --optimizer.lr 0.3); 74.6 % at
    1,000 (besides, --keys.momentum 0.996 --optimizer.weight-decay 1.5e-6). Ours: not run.
    Source: Chen et al. 2021, "An Empirical Study of Training Self-Supervised Vision Transformers", and its
    released code. The keys of all processes are the dictionary, batch normalisation sees the global batch.
    """
    return Recipe(
        name="v3",
        encoder=Encoder(
            arch="resnet50",
            head="mlp",
            head_norm="all",
            hidden=4096,
            dim=256,
            predictor=True,
            zero_residual=True,
            bn_group=None,
        ),
        views=V3,
        keys=MomentumKeys(momentum=0.99, rising=True, shuffle=False),
        dictionary=InBatch(),
        loss=InfoNCE(temperature=1.0, weight=4.0),
        symmetric=True,
        optimizer=LARS(lr=0.6, weight_decay=1e-6),
        schedule=Cosine(warmup=10, after_warmup=True),
        batch=4096,
        epochs=100,
    )


def v3_vit() -> Recipe:
    """MoCo v3 with a vision transformer (ViT-S/16, 12 heads) on ImageNet-1M: AdamW, 300 epochs; needs timm.

    Run: moco pretrain v3-vit --data IMAGENET --out RUN
    Released: 73.2 % linear top-1; 76.7 % with --encoder.arch timm/vit_base_patch16_224. Ours: not run.
    Source: as for `v3`; the random patch projection is its Section 4.
    """
    base = v3()
    return replace(
        base,
        name="v3-vit",
        encoder=replace(
            base.encoder,
            arch="timm/vit_small_patch16_224,num_heads=12",
            head_layers=3,
            predictor_norm="all",
            zero_residual=False,
            random_patches=True,
        ),
        views=replace(V3, scale=(0.08, 1.0)),
        loss=InfoNCE(temperature=0.2, weight=0.8),
        optimizer=AdamW(lr=1.5e-4, weight_decay=0.1),
        schedule=Cosine(warmup=40, after_warmup=True),
        epochs=300,
    )


def instagram() -> Recipe:
    """MoCo v1 on Instagram-1B: batch 1024, 1.25 M steps (about 1.4 epochs of 940 M images).

    Run: moco pretrain instagram --data IMAGES --out RUN
    Paper: about 6 days on 64 GPUs. Ours: not run.
    Source: MoCo, Section 4.1: lr 0.12 (0.03 per 256), times 0.9 every 62,500 steps; 1024 images on
    64 GPUs are batch-normalisation groups of 16.
    """
    return replace(
        v1(),
        name="instagram",
        encoder=replace(v1().encoder, bn_group=16),
        schedule=Exponential(every=62_500, factor=0.9),
        batch=1024,
        epochs=None,
        iterations=1_250_000,
    )


def photos() -> Recipe:
    """A folder of photographs on one GPU or a patient laptop: ResNet-18 at 128 pixels, small queue.

    Run: moco pretrain photos --data FOLDER --out RUN
    Result: not run to its end; see docs/data.md for what to change with the number of images.

    v2 scaled down: K stays far below the size of most folders and own keys are masked, and the key
    encoder follows faster (m = 0.99), because a run has thousands of steps rather than a million.
    """
    return replace(
        v2(),
        name="photos",
        encoder=Encoder(arch="resnet18", head="mlp", bn_group=16),
        views=replace(V2, size=128),
        keys=MomentumKeys(momentum=0.99),
        dictionary=MomentumQueue(size=4096, mask_own=True),
        schedule=Cosine(warmup=1),
        batch=128,
        epochs=100,
        monitor=Monitor(k=20),
    )
