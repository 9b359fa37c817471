"""The ablations of the first paper: mechanisms, momentum, shuffling BN, batch."""

from collections.abc import Sequence
from dataclasses import replace

from moco.recipe import NCE, InBatch, MemoryBank, MomentumKeys, MomentumQueue, QueryKeys, Recipe, TiedKeys
from moco.studies import published
from moco.studies.study import Axis, Cell, Study


def parts(base: Recipe) -> tuple[MomentumKeys, MomentumQueue]:
    """The base's momentum keys and queue, for studies that need them."""
    if not isinstance(base.dictionary, MomentumQueue) or not isinstance(base.keys, MomentumKeys):
        raise ValueError(
            f"the study needs a base recipe with momentum keys and a queue, {base.name} has "
            f"{type(base.keys).__name__} and {type(base.dictionary).__name__}; use --base cores, cifar or v1"
        )
    return base.keys, base.dictionary


def mechanisms(base: Recipe, values: Sequence[float] = (), *, largest_batch: int = 1024) -> Study:
    """Does accuracy grow with the dictionary, and which mechanism reaches furthest?

    End-to-end takes its keys from the batch: K is the batch, with K − 1 negatives, and its learning
    rate grows with it (linear scaling). Sources: MoCo, Figure 3; footnote 2 for NCE.

    Args:
        base: a recipe with momentum keys and a queue.
        values: sizes K; by default the paper's, up to the base's.
        largest_batch: largest K that is run end-to-end; the paper's machine held 1,024.
    """
    _, queue = parts(base)
    sizes = [int(v) for v in values] or [k for k in (256, 512, 1024, 4096, 16384, 65536) if k <= queue.size]
    group = base.encoder.bn_group or 0
    cells = []
    for size in sizes:
        cells.append(
            Cell(f"queue-{size}", replace(base, dictionary=replace(queue, size=size)), size, "momentum queue")
        )
        bank = replace(base, keys=QueryKeys(), dictionary=MemoryBank(size=size, mask_own=queue.mask_own))
        cells.append(Cell(f"bank-{size}", bank, size, "memory bank"))
        if size <= largest_batch and (not group or (size % group == 0 and size > group)):
            tied = replace(base, keys=TiedKeys(), dictionary=InBatch(), batch=size)
            cells.append(Cell(f"end-to-end-{size}", tied, size, "end-to-end"))
    size = 4096 if 4096 in sizes else max(sizes)
    noise = replace(
        base,
        keys=QueryKeys(),
        dictionary=MemoryBank(size=size, mask_own=queue.mask_own),
        loss=NCE(temperature=getattr(base.loss, "temperature", 0.07)),
    )
    cells.append(Cell(f"bank-nce-{size}", noise, size, "memory bank, NCE"))
    return Study(
        name="mechanisms",
        question="Does accuracy grow with the dictionary, and which mechanism reaches furthest?",
        cells=tuple(cells),
        axis=Axis("K (the batch, with K − 1 negatives, for end-to-end)", "log2"),
        reference=f"queue-{max(sizes)}",
        cost=True,
        published=(published.MECHANISMS,),
    )


def momentum(base: Recipe, values: Sequence[float] = (0, 0.9, 0.99, 0.999, 0.9999)) -> Study:
    """How slowly must the key encoder follow?

    Source: MoCo, Section 4.1, "Ablation: momentum", at K = 4,096; m = 0 fails there.

    Args:
        base: a recipe with momentum keys and a queue; a queue larger than 4,096 is cut to it.
        values: of m in θ_k ← m θ_k + (1 − m) θ_q.
    """
    keys, queue = parts(base)
    base = replace(base, dictionary=replace(queue, size=min(queue.size, 4096)))
    cells = [Cell(f"m-{m:g}", replace(base, keys=replace(keys, momentum=float(m))), f"{m:g}") for m in values]
    nearest = min(values, key=lambda m: abs(m - keys.momentum))
    return Study(
        name="momentum",
        question="How slowly must the key encoder follow?",
        cells=tuple(cells),
        axis=Axis("momentum m"),
        reference=f"m-{nearest:g}",
        curves=("loss", "knn_trunk"),
        published=(published.MOMENTUM,),
    )


def shuffle_bn(base: Recipe, values: Sequence[float] = ()) -> Study:
    """Does the pretext task leak through batch statistics when keys are not shuffled?

    Source: MoCo, Section 3.3 and Figure A.1. The paper also saw it end-to-end.

    Args:
        base: a recipe with momentum keys.
        values: images per batch-normalisation group; by default the base's.
    """
    keys, _ = parts(base)
    groups = [int(v) for v in values] or [base.encoder.bn_group or base.batch // 2]
    cells = []
    for group in groups:
        of_group = f", groups of {group}" if len(groups) > 1 else ""
        encoder = replace(base.encoder, bn_group=group)
        for shuffled in True, False:
            name = "shuffled" if shuffled else "not shuffled"
            recipe = replace(base, encoder=encoder, keys=replace(keys, shuffle=shuffled))
            cells.append(Cell(f"{name.replace(' ', '-')}-{group}", recipe, name + of_group, name + of_group))
    return Study(
        name="shuffle-bn",
        question="Does the pretext task leak through batch statistics when keys are not shuffled?",
        cells=tuple(cells),
        axis=Axis("keys"),
        reference=cells[0].name,
        curves=("accuracy", "knn_trunk"),
        published=(published.SHUFFLE_PRETEXT, published.SHUFFLE_KNN),
    )


def batch(base: Recipe, values: Sequence[float] = ()) -> Study:
    """What does a larger batch cost, with the learning rate scaled and without?

    Source: MoCo, Section 4.1: linear scaling is needed, or end-to-end loses about 2 % at 1,024.

    Args:
        base: any recipe.
        values: batch sizes; by default one, two and four times the base's.
    """
    sizes = [int(v) for v in values] or [base.batch * factor for factor in (1, 2, 4)]
    cells = []
    for size in sizes:
        scaled, same = replace(base, batch=size), size == base.batch
        lr = base.optimizer.lr if same else base.optimizer.lr * base.batch / size  # it is for 256 images
        fixed = replace(scaled, optimizer=replace(base.optimizer, lr=lr))
        cells.append(Cell(f"scaled-{size}", scaled, size, "lr scaled"))
        cells.append(Cell(f"{'scaled' if same else 'fixed'}-{size}", fixed, size, "lr not scaled"))
    return Study(
        name="batch",
        question="What does a larger batch cost, with the learning rate scaled and without?",
        cells=tuple(cells),
        axis=Axis("batch", "log2"),
        reference=cells[0].name,
        published=(published.BATCH,),
    )
