"""The ablations of the later papers and of others: temperature, v2's and v3's parts, networks, symmetry."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from moco.data.augmentation import Augmentation
from moco.recipe import Cosine, Encoder, InBatch, InfoNCE, Recipe, Step
from moco.studies import published
from moco.studies.mechanisms import parts
from moco.studies.study import Axis, Cell, Study

_HEADS: tuple[tuple[Literal["linear", "mlp"], str], ...] = (("linear", "linear head"), ("mlp", "MLP head"))
_BLUR_FROM = 64  # pixels: on smaller views the blur of 224 pixels would remove what there is to see


def temperature(base: Recipe, values: Sequence[float] = (0.07, 0.1, 0.2, 0.3, 0.4, 0.5)) -> Study:
    """Which temperature suits the linear head of v1, and which the MLP head of v2?

    Source: MoCo v2, Section 3.

    Args:
        base: a recipe with the InfoNCE loss.
        values: temperatures.
    """
    if not isinstance(base.loss, InfoNCE):
        raise ValueError(f"the study needs a base recipe with InfoNCE, {base.name} has {base.loss}")
    cells = []
    for head, series in _HEADS:
        for value in values:
            loss = replace(base.loss, temperature=float(value))
            recipe = replace(base, encoder=_with_head(base.encoder, head), loss=loss)
            cells.append(Cell(f"{head}-{value:g}", recipe, float(value), series))
    return Study(
        name="temperature",
        question="Which temperature suits the linear head of v1, and which the MLP head of v2?",
        cells=tuple(cells),
        axis=Axis("temperature", "linear"),
        reference=cells[0].name,
        published=(published.TEMPERATURE,),
    )


def v2(base: Recipe, values: Sequence[float] = (4,)) -> Study:
    """What does each part of v2 add: the MLP head, aug+, the cosine schedule, more epochs?

    Source: MoCo v2, Table 1. The MLP head comes with T = 0.2; views below 64 pixels are not
    blurred, as in the released CIFAR-10 demo. The cosine is the base's own where it has one, else that
    of recipe v2, constant within an epoch.

    Args:
        base: any recipe with epochs; its head, colours, temperature and schedule are replaced.
        values: how many times as long the last cell trains.
    """
    if base.epochs is None:
        raise ValueError(f"the study needs a base recipe with epochs, {base.name} counts iterations")
    (longer,) = values or (4,)
    warm = base.schedule.warmup
    cosine = base.schedule if isinstance(base.schedule, Cosine) else Cosine(by_epoch=True, warmup=warm)
    steps = Step(
        milestones=tuple(max(1, round(part * base.epochs)) for part in (0.6, 0.8)), factor=0.1, warmup=warm
    )

    def recipe(*, mlp: bool, aug: bool, cos: bool = False, times: float = 1) -> Recipe:
        return replace(
            base,
            encoder=_with_head(base.encoder, "mlp" if mlp else "linear"),
            views=_colours(base.views, plus=aug),
            loss=InfoNCE(temperature=0.2 if mlp else 0.07),
            schedule=cosine if cos else steps,
            epochs=round(times * (base.epochs or 1)),
        )

    cells = (
        Cell("v1", recipe(mlp=False, aug=False), "v1"),
        Cell("a-mlp", recipe(mlp=True, aug=False), "(a) MLP"),
        Cell("b-aug", recipe(mlp=False, aug=True), "(b) aug+"),
        Cell("c-mlp-aug", recipe(mlp=True, aug=True), "(c) MLP, aug+"),
        Cell("d-mlp-aug-cos", recipe(mlp=True, aug=True, cos=True), "(d) MLP, aug+, cos"),
        Cell(
            "e-longer",
            recipe(mlp=True, aug=True, cos=True, times=longer),
            "(e) longer",
        ),
    )
    return Study(
        name="v2",
        question="What does each part of v2 add?",
        cells=cells,
        axis=Axis("parts"),
        reference="v1",
        published=(published.V2,),
    )


def architectures(base: Recipe, values: Sequence[float] = (1, 2, 4)) -> Study:
    """What do more parameters give?

    Source: MoCo, Table 1: R50, RX50, R50w2x, R50w4x. From another base than a ResNet-50 the same
    comparison is made with its own network: widths times `values`, and eight layers more.

    Args:
        base: any recipe.
        values: times the base's width, where the base is no ResNet-50.
    """
    e = base.encoder
    if "/" in e.arch:
        raise ValueError(f"the study varies the width of ResNets of ours, {base.name} has {e.arch}")
    if e.arch == "resnet50" and e.width is None:
        nets = {
            "r50": e,
            "rx50": replace(e, arch="resnext50_32x8d"),
            "r50w2x": replace(e, arch="resnet50w2x"),
            "r50w4x": replace(e, arch="resnet50w4x"),
        }
    else:
        width = e.width or 64
        nets = {
            f"{e.arch.replace('/', '-')}-w{v * width:g}": replace(e, width=int(v * width)) for v in values
        }
        if e.arch == "resnet10":
            nets[f"resnet18-w{width}"] = replace(e, arch="resnet18", width=width)
    cells = tuple(
        Cell(name.lower().replace("_", "-"), replace(base, encoder=net), name, "MoCo")
        for name, net in nets.items()
    )
    return Study(
        name="architectures",
        question="What do more parameters give?",
        cells=cells,
        axis=Axis("parameters, millions", "log10"),
        reference=cells[0].name,
        published=(published.ARCHITECTURES,),
    )


def symmetric(base: Recipe, values: Sequence[float] = (2,)) -> Study:
    """Is a symmetric loss worth its price, against training longer?

    Source: the released CIFAR-10 demo; see `doubled` for its sum of both terms.

    Args:
        base: a recipe with epochs and the loss in one direction.
        values: how many times as long the third cell trains; twice costs about the same.
    """
    if base.epochs is None or base.symmetric:
        raise ValueError(f"the study needs a base with epochs and symmetric off, got {base.name}")
    (longer,) = values or (2,)
    twice = "one direction, twice as long" if longer == 2 else f"one direction, {longer:g} times as long"
    return Study(
        name="symmetric",
        question="Is a symmetric loss worth its price, against training longer?",
        cells=(
            Cell("one-direction", base, "one direction"),
            Cell("symmetric", doubled(base), "symmetric"),
            Cell("longer", of_length(base, round(longer * base.epochs)), twice),
        ),
        axis=Axis("loss"),
        metric="knn_output",
        reference="one-direction",
        published=(published.SYMMETRIC,),
    )


def v3(base: Recipe, values: Sequence[float] = ()) -> Study:
    """What does each part of v3 do, and what does it cost to have no queue?

    Source: MoCo v3, Section 4.3 (predictor, batch normalisation in the heads), Section 3 (no queue). All
    cells have both directions of the loss; v3's have batch normalisation over the whole batch.

    Args:
        base: a recipe with momentum keys and a queue; temperature, optimizer and views stay its own.
        values: channels of the heads' hidden layers; by default four times the vectors' length.
    """
    keys, queue = parts(base)
    (hidden,) = values or (4 * base.encoder.dim,)
    both = base if base.symmetric else doubled(base)
    encoder = replace(
        base.encoder, head="mlp", head_norm="all", hidden=int(hidden), predictor=True, bn_group=None
    )
    steady = replace(keys, rising=False, shuffle=False)
    whole = replace(both, encoder=encoder, keys=replace(steady, rising=True), dictionary=InBatch())
    plain = replace(encoder, head_norm="off", predictor_norm="off")
    return Study(
        name="v3",
        question="What does each part of v3 do, and what does it cost to have no queue?",
        cells=(
            Cell("queue", both, "queue, base's head"),
            Cell("v3", whole, "v3"),
            Cell("v3-queue", replace(whole, dictionary=queue), "v3 with the queue"),
            Cell("no-predictor", replace(whole, encoder=replace(encoder, predictor=False)), "no predictor"),
            Cell("plain-heads", replace(whole, encoder=plain), "heads without BN"),
            Cell("m-stays", replace(whole, keys=steady), "m stays"),
        ),
        axis=Axis("parts"),
        reference="v3",
        published=(published.V3,),
    )


def doubled(base: Recipe) -> Recipe:
    """The base with the loss in both directions, as the released CIFAR-10 demo has it.

    It sums both terms: here they are averaged, so lr is doubled and weight decay halved, which gives the
    same weights with SGD.
    """
    o = base.optimizer
    return replace(base, symmetric=True, optimizer=replace(o, lr=2 * o.lr, weight_decay=o.weight_decay / 2))


def of_length(base: Recipe, epochs: int) -> Recipe:
    """The base with so many epochs, milestones at the same shares of them.

    Args:
        base: any recipe; one that counts iterations counts epochs then, with its schedule as it is.
        epochs: how many.
    """
    schedule = base.schedule
    if isinstance(schedule, Step) and base.epochs is not None:
        scaled = (max(1, round(epoch * epochs / base.epochs)) for epoch in schedule.milestones)
        schedule = replace(schedule, milestones=tuple(scaled))
    return replace(base, epochs=epochs, iterations=None, schedule=schedule)


def _with_head(encoder: Encoder, head: Literal["linear", "mlp"]) -> Encoder:
    """The encoder with another head; what belongs to the mlp head goes with it."""
    if head == "mlp":
        return replace(encoder, head=head)
    return replace(encoder, head=head, head_layers=2, head_norm="off")


def _colours(views: Augmentation, *, plus: bool) -> Augmentation:
    """The colour changes of v2's aug+, or of v1, on views of the same size and crops."""
    if not plus:
        return replace(views, hue=0.4, jitter_probability=1.0, grayscale_first=True, blur_probability=0.0)
    blur = 0.5 if views.size >= _BLUR_FROM else 0.0
    return replace(views, hue=0.1, jitter_probability=0.8, grayscale_first=False, blur_probability=blur)
