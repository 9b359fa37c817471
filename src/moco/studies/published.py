"""The papers' numbers that the studies are compared with, each with its table or figure."""

from moco.studies.study import Point, Published

_IMAGENET = "ImageNet-1M, ResNet-50, 200 epochs"
_SIZES = (256, 512, 1024, 4096, 16384, 65536)
_FIGURE_3 = {
    "end-to-end": (54.9, 56.3, 57.3),
    "memory bank": (50.0, 52.0, 54.1, 56.5, 57.8, 58.0),
    "momentum queue": (54.7, 56.4, 57.5, 59.0, 60.4, 60.6),
}

MECHANISMS = Published(
    source="MoCo, Figure 3",
    data=_IMAGENET,
    metric="linear top-1",
    points=(
        *(
            Point(size, value, series)
            for series, values in _FIGURE_3.items()
            for size, value in zip(_SIZES, values, strict=False)
        ),
        Point(4096, 54.3, "memory bank, NCE", "footnote 2"),
    ),
)

MOMENTUM = Published(
    source="MoCo, Section 4.1, ablation: momentum",
    data=f"{_IMAGENET}, K = 4,096",
    metric="linear top-1",
    points=(
        Point("0", None, note="fails: the loss oscillates and does not converge"),
        Point("0.9", 55.2),
        Point("0.99", 57.8),
        Point("0.999", 59.0),
        Point("0.9999", 58.9),
    ),
)

_EPOCHS = (3, 5, 10, 14, 20, 30, 40, 50, 60, 80)
SHUFFLE_PRETEXT = Published(
    source="MoCo, Figure A.1, read off the plot to about 0.5",
    data="ImageNet-1M, ResNet-50, first 80 epochs",
    metric="accuracy",
    points=(
        *(
            Point(x, y, "shuffled")
            for x, y in ((3, 73.0), (10, 95.5), (14, 96.5), (40, 97.0), (60, 97.0), (80, 97.0))
        ),
        *(Point(x, y, "not shuffled") for x, y in ((3, 76.0), (5, 92.0), (14, 98.8), (20, 99.8), (80, 99.9))),
    ),
)
SHUFFLE_KNN = Published(
    source="MoCo, Figure A.1, read off the plot to about 0.5",
    data="ImageNet-1M, ResNet-50, first 80 epochs",
    metric="knn",
    points=(
        *(
            Point(x, y, "shuffled")
            for x, y in zip(_EPOCHS, (8, 17, 28, 32, 36, 38, 40, 40, 41, 42), strict=True)
        ),
        *(
            Point(x, y, "not shuffled")
            for x, y in zip(_EPOCHS, (9, 18, 26, 28.3, 27.5, 26.3, 26, 24.5, 24, 22.5), strict=True)
        ),
    ),
)

_TEMPERATURES = (0.07, 0.1, 0.2, 0.3, 0.4, 0.5)
_TEMPERATURE_TABLE = {
    "linear head": (60.6, 60.7, 59.0, 58.2, 57.2, 56.4),
    "MLP head": (62.9, 64.9, 66.2, 65.7, 65.0, 64.3),
}
TEMPERATURE = Published(
    source="MoCo v2, Section 3, temperatures",
    data=_IMAGENET,
    metric="linear top-1",
    points=tuple(
        Point(x, y, series)
        for series, values in _TEMPERATURE_TABLE.items()
        for x, y in zip(_TEMPERATURES, values, strict=True)
    ),
)

V2 = Published(
    source="MoCo v2, Table 1",
    data="ImageNet-1M, ResNet-50, 200 epochs; (e): 800",
    metric="linear top-1",
    points=(
        Point("v1", 60.6),
        Point("(a) MLP", 66.2),
        Point("(b) aug+", 63.4),
        Point("(c) MLP, aug+", 67.3),
        Point("(d) MLP, aug+, cos", 67.5),
        Point("(e) longer", 71.1),
    ),
)

V3 = Published(
    source="MoCo v3, ablations of a ViT",
    data="ImageNet-1M, ViT-B/16, 300 epochs",
    metric="linear top-1",
    points=(
        Point("v3", 76.5),
        Point("no predictor", 75.5),
        Point("heads without BN", 74.4, note="batch 2,048"),
    ),
)

ARCHITECTURES = Published(
    source="MoCo, Table 1",
    data="ImageNet-1M; millions of parameters without the classifier",
    metric="linear top-1",
    points=(
        Point(24, 60.6, "MoCo", "R50"),
        Point(46, 63.9, "MoCo", "RX50"),
        Point(94, 65.4, "MoCo", "R50w2x"),
        Point(375, 68.6, "MoCo", "R50w4x"),
        Point(211, 46.0, "others", "Exemplar, R50w3x"),
        Point(94, 51.4, "others", "RelativePosition, R50w2x"),
        Point(94, 44.6, "others", "Jigsaw, R50w2x"),
        Point(86, 55.4, "others", "Rotation, Rv50w4x"),
        Point(28, 39.6, "others", "Colorization, R101*"),
        Point(15, 48.4, "others", "DeepCluster, VGG"),
        Point(24, 56.6, "others", "BigBiGAN, R50"),
        Point(86, 61.3, "others", "BigBiGAN, Rv50w4x"),
        Point(24, 54.0, "others", "InstDisc, R50"),
        Point(24, 58.8, "others", "LocalAgg, R50"),
        Point(28, 48.7, "others", "CPC v1, R101*"),
        Point(303, 65.9, "others", "CPC v2, R170* wider"),
        Point(47, 64.1, "others, augmentation learnt with labels", "CMC, R50 L+ab"),
        Point(188, 68.4, "others, augmentation learnt with labels", "CMC, R50w2x L+ab"),
        Point(194, 63.5, "others, augmentation learnt with labels", "AMDIM small"),
        Point(626, 68.1, "others, augmentation learnt with labels", "AMDIM large"),
    ),
)

BATCH = Published(
    source="MoCo, Section 4.1: about 2 % less at 1,024 without linear scaling, end-to-end",
    data=_IMAGENET,
    metric="linear top-1",
    points=(Point(1024, 57.3, "lr scaled"), Point(1024, 55.3, "lr not scaled", "about")),
)

SYMMETRIC = Published(
    source="released CIFAR-10 demo",
    data="CIFAR-10, ResNet-18, kNN on the head output; 200 and 400 epochs",
    metric="knn_output",
    points=(
        Point("one direction", 82.6),
        Point("symmetric", 85.3),
        Point("one direction, twice as long", 86.3),
    ),
    images=50_000,
    classes=10,
)
