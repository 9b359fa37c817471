"""The paper's transfer experiments, each with its published figures, and one for two processor cores.

Figures are those of a ResNet-50 pre-trained on ImageNet-1M: random / supervised / MoCo.
"""

from collections.abc import Callable
from dataclasses import replace

from moco.transfer_recipe import Heads, Images, Schedule, TransferRecipe, Trunk

_COCO_IMAGES = Images(short=(640, 672, 704, 736, 768, 800))
_FPN = Heads(model="fpn", masks=True, train_before=2000, train_after=1000, test_before=1000, test_after=1000)
_COCO_1X = Schedule(milestones=(60 / 90, 80 / 90), warmup=1000)
_COCO_2X = Schedule(milestones=(120 / 180, 160 / 180), warmup=1000)


def voc_c4() -> TransferRecipe:
    """VOC detection, R50-C4, 24,000 steps on trainval07+12. Published AP: 33.8 / 53.5 / 55.9. Ours: not run.

    Run: moco transfer voc-c4 --init RUN --data FOLDER --out OUT --trials 5
    AP50: 60.2 / 81.3 / 81.5; AP75: 33.1 / 58.8 / 62.6. Source: MoCo, Table 2b.
    """
    return TransferRecipe()


def voc_dc5() -> TransferRecipe:
    """VOC detection, R50-dilated-C5, 24,000 steps. Published AP: 37.9 / 54.0 / 54.6. Ours: not run.

    Run: moco transfer voc-dc5 --init RUN --data FOLDER --out OUT --trials 5
    AP50: 64.4 / 81.4 / 81.1; AP75: 38.6 / 59.1 / 59.9. Source: MoCo, Table 2a.
    """
    return replace(voc_c4(), name="voc-dc5", heads=Heads(model="dilated-c5"))


def voc07_c4() -> TransferRecipe:
    """VOC detection on trainval2007 alone, 9,000 steps. AP50 published: 74.4 supervised, 74.9 MoCo.

    Run: moco transfer voc07-c4 --init RUN --data FOLDER --out OUT --trials 5
    Ours: not run. Source: MoCo, Table 4. The paper does not say where the learning rate drops; here it
    is at the same parts of the run as for 24,000 steps.
    """
    return replace(voc_c4(), name="voc07-c4", train=("VOC2007:trainval",), iterations=9_000)


def coco_c4_1x() -> TransferRecipe:
    """COCO detection and masks, R50-C4, 90,000 steps. Published box AP: 26.4 / 38.2 / 38.5. Ours: not run.

    Run: moco transfer coco-c4-1x --init RUN --data FOLDER --out OUT
    Mask AP: 29.3 / 33.3 / 33.6. Source: MoCo, Table 5c.
    """
    return TransferRecipe(
        name="coco-c4-1x",
        layout="coco",
        train=("train2017",),
        test="val2017",
        images=_COCO_IMAGES,
        heads=Heads(model="c4", masks=True),
        schedule=_COCO_1X,
        iterations=90_000,
    )


def coco_c4_2x() -> TransferRecipe:
    """COCO detection and masks, R50-C4, 180,000 steps. Published box AP: 35.6 / 40.0 / 40.7. Ours: not run.

    Run: moco transfer coco-c4-2x --init RUN --data FOLDER --out OUT
    Mask AP: 31.4 / 34.7 / 35.4. Source: MoCo, Table 5d.
    """
    return replace(coco_c4_1x(), name="coco-c4-2x", schedule=_COCO_2X, iterations=180_000)


def coco_fpn_1x() -> TransferRecipe:
    """COCO detection and masks, R50-FPN, 90,000 steps. Published box AP: 31.0 / 38.9 / 38.5. Ours: not run.

    Run: moco transfer coco-fpn-1x --init RUN --data FOLDER --out OUT
    Mask AP: 28.5 / 35.4 / 35.1. Source: MoCo, Table 5a.
    """
    return replace(coco_c4_1x(), name="coco-fpn-1x", heads=_FPN)


def coco_fpn_2x() -> TransferRecipe:
    """COCO detection and masks, R50-FPN, 180,000 steps. Published box AP: 36.7 / 40.6 / 40.8. Ours: not run.

    Run: moco transfer coco-fpn-2x --init RUN --data FOLDER --out OUT
    Mask AP: 33.7 / 36.8 / 36.9. Source: MoCo, Table 5b.
    """
    return replace(coco_fpn_1x(), name="coco-fpn-2x", schedule=_COCO_2X, iterations=180_000)


def coco_fpn_6x() -> TransferRecipe:
    """COCO detection and masks, R50-FPN, 540,000 steps. Published box AP: 41.4 / 41.9 / 42.3. Ours: not run.

    Run: moco transfer coco-fpn-6x --init RUN --data FOLDER --out OUT
    Mask AP: 37.6 / 38.0 / 38.3. Source: MoCo, Table A.1.
    """
    schedule = Schedule(milestones=(480 / 540, 520 / 540), warmup=1000)
    return replace(coco_fpn_1x(), name="coco-fpn-6x", schedule=schedule, iterations=540_000)


def keypoints() -> TransferRecipe:
    """COCO keypoints, R50-FPN, 180,000 steps. Published AP: 65.9 / 65.8 / 66.8. Ours: not run.

    Run: moco transfer keypoints --init RUN --data FOLDER --out OUT
    AP50: 86.5 / 86.9 / 87.4; AP75: 71.7 / 71.9 / 72.5. Source: MoCo, Table 6.
    """
    return replace(
        coco_fpn_2x(),
        name="keypoints",
        layout="keypoints",
        heads=replace(_FPN, masks=False, train_after=1500, beta=0.5),
    )


def densepose() -> TransferRecipe:
    """DensePose on COCO, R50-FPN, "s1x". Published AP: 39.4 / 48.3 / 50.1. Ours: not run on real annotations.

    Run: moco transfer densepose --init RUN --data FOLDER --out OUT --geodesic FOLDER
    AP50: 78.5 / 85.6 / 86.8; AP75: 35.1 / 50.6 / 53.9. Source: MoCo, Table 6. Learning rate and steps are
    the paper's stack's today (0.01, 130,000); the paper does not state them.
    """
    return replace(
        coco_fpn_1x(),
        name="densepose",
        layout="densepose",
        train=("train", "valminusminival"),
        test="minival",
        heads=replace(_FPN, masks=False),
        schedule=Schedule(milestones=(100 / 130, 120 / 130), warmup=1000, warmup_factor=0.1),
        iterations=130_000,
        lr=0.01,
    )


def lvis() -> TransferRecipe:
    """LVIS v0.5 masks, R50-FPN, 180,000 steps. Published mask AP: 22.5 / 24.4 (frozen) / 24.1. Ours: not run.

    Run: moco transfer lvis --init RUN --data FOLDER --out OUT --trials 5
    AP50: 34.8 / 37.8 / 37.4; AP75: 23.8 / 25.8 / 25.5. The supervised figure is with `--trunk.norm frozen`
    (23.2 trained). Source: MoCo, Table 6 and appendix A.4.
    """
    return replace(
        coco_fpn_2x(),
        name="lvis",
        layout="lvis",
        train=("v0.5_train",),
        test="v0.5_val",
        heads=replace(_FPN, threshold=1e-4, most=300),
        repeat_below=0.001,
    )


def cityscapes() -> TransferRecipe:
    """Cityscapes instances, R50-FPN, 24,000 steps. Published mask AP: 25.4 / 32.9 / 32.3. Ours: not run.

    Run: moco transfer cityscapes --init RUN --data FOLDER --out OUT
    AP50: 51.1 / 59.6 / 59.3. Source: MoCo, Table 6. The paper gives no setting; this is its stack's (batch 8,
    learning rate 0.01, drop at 18,000).
    """
    return TransferRecipe(
        name="cityscapes",
        layout="cityscapes",
        train=("train",),
        test="val",
        images=Images(short=tuple(range(800, 1025, 32)), longest=2048, test_short=1024, test_longest=2048),
        heads=_FPN,
        schedule=Schedule(milestones=(0.75,), warmup=1000),
        iterations=24_000,
        batch=8,
    )


def voc_segmentation() -> TransferRecipe:
    """VOC segmentation, dilated R50, 30,000 steps. Published mIoU: 39.5 / 74.4 / 72.5. Ours: not run.

    Run: moco transfer voc-segmentation --init RUN --data FOLDER --out OUT --trials 5
    Source: MoCo, Table 6 and appendix A.5. A warm-up is not mentioned there and not used.
    """
    return TransferRecipe(
        name="voc-segmentation",
        layout="voc-segmentation",
        train=("VOC2012:train_aug",),
        test="VOC2012:val",
        heads=Heads(model="fcn"),
        schedule=Schedule(milestones=(0.7, 0.9), warmup=0),
        iterations=30_000,
        lr=0.003,
        precise=0,
    )


def cityscapes_segmentation() -> TransferRecipe:
    """Cityscapes segmentation, dilated R50, 90,000 steps. Published mIoU: 65.3 / 74.6 / 75.3. Ours: not run.

    Run: moco transfer cityscapes-segmentation --init RUN --data FOLDER --out OUT --trials 5
    Source: MoCo, Table 6 and appendix A.5. People who tried to reproduce it report about 67.
    """
    return replace(
        voc_segmentation(),
        name="cityscapes-segmentation",
        layout="cityscapes-segmentation",
        train=("train",),
        test="val",
        images=Images(crop=769),
        iterations=90_000,
        lr=0.01,
    )


def voc_small() -> TransferRecipe:
    """VOC detection at a quarter of the size, for two processor cores: a trial run, not a published setting.

    Run: moco transfer voc-small --init RUN --data FOLDER --out OUT --trials 3
    """
    return replace(
        voc_c4(),
        name="voc-small",
        train=("VOC2007:trainval",),
        trunk=Trunk(arch="resnet18", width=32),
        images=Images(factor=0.25),
        heads=Heads(train_before=500, train_after=100, test_before=500, test_after=100, regions=64),
        schedule=Schedule(warmup=20),
        iterations=300,
        batch=4,
        precise=20,
        checkpoint_every=100,
    )


TRANSFER_RECIPES: dict[str, Callable[[], TransferRecipe]] = {
    make().name: make
    for make in (
        voc_c4, voc_dc5, voc07_c4, coco_c4_1x, coco_c4_2x, coco_fpn_1x, coco_fpn_2x, coco_fpn_6x, keypoints,
        densepose, lvis, cityscapes, voc_segmentation, cityscapes_segmentation, voc_small,
    )
}  # fmt: skip


def get_transfer(name: str) -> TransferRecipe:
    """A transfer recipe by name.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in TRANSFER_RECIPES:
        raise ValueError(f"there is no transfer recipe {name!r}; there are {', '.join(TRANSFER_RECIPES)}")
    return TRANSFER_RECIPES[name]()
