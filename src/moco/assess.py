"""What a run's features are worth, by every protocol, beside what one could use instead."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from moco.device import choose_device
from moco.evaluate.diagnostics import PAIRS, diagnose, trend
from moco.evaluate.features import pixels
from moco.evaluate.fewlabel import AMOUNTS, Amount, Learner, Point, comparable, few_label_curve, on_features
from moco.evaluate.finetune import FineTuning, predict, train_classifier
from moco.evaluate.knn import knn
from moco.evaluate.linear import LinearProtocol, linear_grid, linear_protocol
from moco.evaluate.logistic import fit_predict
from moco.images import open_like, pairs, portions
from moco.run_folder import chosen_images, read_run
from moco.starts import Setting, Start
from moco.training.journal import read
from moco.weights import open_weights, trained_encoder

RAW_SIDE, RAW_DIRECTIONS = 24, 256
_FEW_LABEL_STEPS = 200
_FEW_LABEL_BATCH = 32


def measure_knn(
    out: str | Path,
    *,
    data: str | None = None,
    k: int | None = None,
    temperature: float | None = None,
    device: str = "auto",
    lost: list[str] | None = None,
) -> dict[str, float]:
    """kNN accuracy in percent of trunk features and head output, on all labelled images that can be read.

    Args:
        out: weights, as for `moco.weights.open_weights`: a run folder or a file.
        data: labelled images, as for `pretrain`; None takes the run's own.
        k, temperature: see `moco.evaluate.knn.knn_predict`; None takes the run's own, and no
            more neighbours than there are images.
        device: "auto", "cpu", "cuda" or "mps".
        lost: the names of images that cannot be read are added to it.

    Raises:
        FileNotFoundError: if there is no run or there are no images.
        ValueError: if the images have no labels or cannot be read, or k is out of range.
    """
    where = choose_device(device)
    weights = open_weights(out, where)
    values = weights.values
    spec, listed = chosen_images(weights.path, weights.run, data)
    images = open_like(spec, values.reading, listed, weights.about)
    found = portions(images, values.seed)
    if found is None:
        if any(s is not None and s.labels is None for s in (images.train, images.test)):
            raise ValueError(f"{spec} has no labels; kNN needs class folders or a labels array")
        raise ValueError(f"{spec} has too few labelled images to learn from some and test on others")
    bank, queries = (portion.plain(values, where) for portion in found)
    count = len(bank.classes)
    k = min(values.monitor.k, count) if k is None else k
    temperature = values.monitor.temperature if temperature is None else temperature
    if not 1 <= k <= count:
        raise ValueError(f"k must be between 1 and the {count} images searched, got {k}")
    measured = dict(knn(weights.encoder, bank, queries, k=k, temperature=temperature))
    if not weights.has_head:
        del measured["knn_output"]
    if lost is not None:
        for portion, images_read in zip(found, (bank, queries), strict=True):
            lost += portion.take(torch.tensor(sorted(images_read.unreadable), dtype=torch.long)).names()
    return {"k": min(k, len(bank.labels)), "temperature": temperature, **measured}


def linear(
    setting: Setting,
    start: Start,
    *,
    kind: Literal["paper", "grid", "logistic"] = "grid",
    protocol: LinearProtocol = LinearProtocol(),  # noqa: B008
) -> Iterator[dict[str, Any]]:
    """Linear classification of a start's trunk features; the last row yielded is the result.

    Args:
        setting: the labelled images.
        start: whose trunk.
        kind: "paper", the protocol to the letter, through the frozen trunk in every epoch; "grid", on
            features of uncropped images, cached once, over a grid of learning rates and weight decays;
            "logistic", the regularised optimum on the same features, by L-BFGS.
        protocol: numbers of the first two.
    """
    labels, answers = setting.train.labels, setting.test.labels
    if kind == "paper":
        yield from linear_protocol(
            start.encoder,
            setting.train.crops(start.values, setting.device, batch=protocol.batch, seed=start.values.seed),
            setting.test.plain(start.values, setting.device),
            setting.classes,
            protocol=protocol,
            seed=start.values.seed,
        )
        return
    train = start.features(setting.train, setting.device).trunk
    test = start.features(setting.test, setting.device).trunk
    if kind == "grid":
        found = linear_grid(
            train[None], labels, test, answers,
            groups=setting.train.groups, protocol=protocol, seed=start.values.seed,
        )  # fmt: skip
        yield {"top1": found.top1, "lr": found.lr, "weight_decay": found.weight_decay, "grid": found.settings}
        return
    groups = setting.train.groups
    predicted = fit_predict(
        train[None], labels[None], setting.classes, test, groups=None if groups is None else groups[None]
    )[0]
    yield {"top1": round(100 * (predicted == answers).double().mean().item(), 3)}


def by_training(setting: Setting, start: Start, done: Callable[[], None] = lambda: None) -> Learner:
    """Fine-tuning on few labels: about 200 steps of at most 32 images, the paper's learning rates.

    `done` is called after each split.
    """
    test = setting.test.plain(start.values, setting.device)

    def learn(splits: Tensor) -> Tensor:
        predicted = []
        for split in splits:
            portion = setting.train.take(split)
            batch = min(_FEW_LABEL_BATCH, len(split))
            steps = len(split) // batch
            protocol = FineTuning(
                lr=0.03 if start.trained else 0.1,
                epochs=math.ceil(_FEW_LABEL_STEPS / steps),
                schedule="cosine",
                batch=batch,
            )
            net = start.classifier(setting)
            crops = portion.crops(start.values, setting.device, batch=batch, drop_last=True)
            for _ in train_classifier(net, crops, steps, None, protocol, seed=start.values.seed):
                pass
            predicted.append(predict(net, test).argmax(1))
            done()
        return torch.stack(predicted)

    return learn


def few_labels(
    setting: Setting,
    start: Start,
    *,
    amounts: Sequence[Amount] = AMOUNTS,
    repeats: int = 10,
    by_finetuning: bool = False,
    left_out: list[str] | None = None,
) -> list[Point]:
    """The few-label curve of a start: logistic regression on frozen features, or fine-tuning.

    Args:
        setting: the labelled images.
        start: what is measured.
        amounts: of labels.
        repeats: splits of each amount.
        by_finetuning: train the whole network.
        left_out: a sentence for each amount that is left out is added to it.

    Raises:
        ValueError: if there is no repeat, or a class has fewer images than labels asked for.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    labels, answers = setting.train.labels, setting.test.labels
    fewest = int(torch.bincount(labels)[labels.unique()].min())
    for amount in amounts:
        if amount.per_class is not None and amount.per_class > fewest and amounts is not AMOUNTS:
            raise ValueError(
                f"{amount.per_class} labels per class were asked for, but a class of {setting.spec} has only "
                f"{fewest} training images"
            )
    usable = comparable(labels, amounts, left_out)  # known before any image is encoded
    if by_finetuning:
        learner = by_training(setting, start)
    else:
        train, test = (start.features(p, setting.device).trunk for p in (setting.train, setting.test))
        learner = on_features(train, labels, test, setting.train.groups)
    return few_label_curve(
        learner,
        labels,
        answers,
        amounts=list(usable.values()),
        repeats=repeats,
        seed=setting.values.seed,
    )


def diagnose_run(
    out: str | Path, *, data: str | None = None, images: int = PAIRS, device: str = "auto"
) -> dict[str, Any]:
    """The label-free measures of a run's newest checkpoint, and the trend of those in its journal.

    The images are test images where there are any, else training images. Needs no labels.

    Raises:
        FileNotFoundError: if there is no run or there are no images.
        ValueError: if there are fewer than two images.
    """
    if images < 2:
        raise ValueError(f"images must be at least 2, whose features are compared, got {images}")
    out, where = Path(out), choose_device(device)
    values, run = read_run(out)
    spec, listed = chosen_images(out, run, data)
    views = pairs(values, open_like(spec, values.reading, listed, run), where, count=images)
    rows = [row for row in read(out / "journal.jsonl") if "retrieval" in row]
    seen = 0

    def counted() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal seen
        for pair in views():
            seen += len(pair[0])
            yield pair

    return {**dict(diagnose(trained_encoder(out, where), counted())), "images": seen, "trend": trend(rows)}


def raw_pixels(setting: Setting) -> tuple[Tensor, Tensor]:
    """Pixels of training and test images as features, averaged down and rotated to their main directions."""
    train, test = (
        pixels(portion.plain(setting.values, setting.device, strict=True).batches(), side=RAW_SIDE)
        for portion in (setting.train, setting.test)
    )
    centre = train.mean(0)
    train, test = train - centre, test - centre
    _, directions = torch.linalg.eigh(train.T @ train)
    main = directions[:, -RAW_DIRECTIONS:]
    return train @ main, test @ main
