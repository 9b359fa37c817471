"""What a run's features are worth, by every protocol, beside what one could use instead."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from moco import recipe_file
from moco.evaluate.diagnostics import PAIRS, diagnose, trend
from moco.evaluate.features import pixels
from moco.evaluate.fewlabel import AMOUNTS, Amount, Learner, Point, few_label_curve, on_features
from moco.evaluate.finetune import Classifier, FineTuning, predict, train_classifier
from moco.evaluate.linear import LinearProtocol, linear_grid, linear_protocol
from moco.evaluate.logistic import fit_predict
from moco.export.backbone import backbone_bytes
from moco.images import pairs
from moco.launch import choose_device, open_data, trained_encoder
from moco.run_folder import chosen_images, is_free, read_run
from moco.starts import Setting, Start, untrained_start
from moco.training.checkpoint import Checkpoints, write_atomically
from moco.training.journal import read
from moco.weights import backbone_about

Say = Callable[[str], None]
RAW_SIDE, RAW_DIRECTIONS = 24, 256
_FEW_LABEL_STEPS = 200
_FEW_LABEL_BATCH = 32


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
        found = linear_grid(train[None], labels, test, answers, protocol=protocol, seed=start.values.seed)
        yield {"top1": found.top1, "lr": found.lr, "weight_decay": found.weight_decay, "grid": found.settings}
        return
    predicted = fit_predict(train[None], labels[None], setting.classes, test)[0]
    yield {"top1": round(100 * (predicted == answers).double().mean().item(), 3)}


def finetune(
    setting: Setting,
    start: Start,
    protocol: FineTuning,
    *,
    net: Classifier | None = None,
    folder: Path | None = None,
) -> Iterator[dict[str, float]]:
    """Train a start's trunk and a classifier end to end; yields a row after every epoch.

    Args:
        setting: the labelled images.
        start: where to begin.
        protocol: how.
        net: trained in place; None makes one.
        folder: keeps checkpoints, so that the same call goes on; None keeps none.

    Raises:
        ValueError: if there are fewer images than one batch takes.
    """
    batch = protocol.batch
    if len(setting.train.labels) < batch:
        raise ValueError(
            f"{setting.spec} has {len(setting.train.labels)} labelled training images, fewer than a batch "
            f"of {batch}; use a smaller --batch"
        )
    yield from train_classifier(
        start.classifier(setting) if net is None else net,
        setting.train.crops(
            start.values, setting.device, batch=batch, drop_last=True, seed=start.values.seed
        ),
        len(setting.train.labels) // batch,
        setting.test.plain(start.values, setting.device),
        protocol,
        keeper=None if folder is None else Checkpoints(folder, keep=1),
        seed=start.values.seed,
    )


def supervised(
    setting: Setting, out: str | Path, protocol: FineTuning, *, say: Say = print
) -> list[dict[str, float]]:
    """Train the run's architecture on the same images with their labels: the paper's supervised counterpart.

    Writes `backbone.safetensors`, like a run's, and `supervised.json` into a folder; the same call
    again goes on from its last epoch.

    Args:
        setting: a run and labelled images.
        out: the folder.
        protocol: how.
        say: told after every epoch.

    Raises:
        FileExistsError: if the folder holds something else.
    """
    out = Path(out)
    plan = {
        "data": setting.spec,
        "recipe": recipe_file.to_dict(setting.values),
        **dataclasses.asdict(protocol),
    }
    plan = json.loads(json.dumps(plan))
    note = out / "supervised.json"
    known = json.loads(note.read_text()) if note.exists() else {"plan": plan, "rows": []}
    if known["plan"] != plan or (not note.exists() and not is_free(out)):
        raise FileExistsError(f"{out} holds something else; choose another folder, nothing was overwritten")
    rows: list[dict[str, float]] = known["rows"]
    if len(rows) == protocol.epochs:
        return rows
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(note, json.dumps({"plan": plan, "rows": []}).encode())
    start = untrained_start(setting)
    net = start.classifier(setting)
    for row in finetune(setting, start, protocol, net=net, folder=out / "checkpoints"):
        rows = [*rows[: int(row["epoch"]) - 1], row]
        say(f"supervised, epoch {row['epoch']}: loss {row['loss']:.3f}, top-1 {row['top1']:.1f} %")
        write_atomically(note, json.dumps({"plan": plan, "rows": rows}).encode())
    write_atomically(
        out / "backbone.safetensors",
        backbone_bytes(net.trunk, backbone_about(setting.values, setting.channels)),
    )
    return rows


def finished(folder: Path) -> list[dict[str, float]]:
    """The rows of a supervised training that came to its end in a folder; none otherwise."""
    if not (folder / "backbone.safetensors").exists():
        return []
    return json.loads((folder / "supervised.json").read_text())["rows"]


def by_training(setting: Setting, start: Start) -> Learner:
    """Fine-tuning on few labels: about 200 steps of at most 32 images, the paper's learning rates."""
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
        return torch.stack(predicted)

    return learn


def few_labels(
    setting: Setting,
    start: Start,
    *,
    amounts: Sequence[Amount] = AMOUNTS,
    repeats: int = 10,
    by_finetuning: bool = False,
) -> list[Point]:
    """The few-label curve of a start: logistic regression on frozen features, or fine-tuning.

    Raises:
        ValueError: if a class has fewer images than labels asked for.
    """
    labels, answers = setting.train.labels, setting.test.labels
    fewest = int(torch.bincount(labels)[labels.unique()].min())
    for amount in amounts:
        if amount.per_class is not None and amount.per_class > fewest and amounts is not AMOUNTS:
            raise ValueError(
                f"{amount.per_class} labels per class were asked for, but a class of {setting.spec} has only "
                f"{fewest} training images"
            )
    if by_finetuning:
        learner = by_training(setting, start)
    else:
        train, test = (start.features(p, setting.device).trunk for p in (setting.train, setting.test))
        learner = on_features(train, labels, test)
    return few_label_curve(
        learner, labels, answers, amounts=amounts, repeats=repeats, seed=setting.values.seed
    )


def counterpart(
    setting: Setting,
    *,
    lr: float = 0.1,
    weight_decay: float = 1e-4,
    epochs: int | None = None,
    batch: int | None = None,
) -> FineTuning:
    """How a run's supervised counterpart is trained: its epochs and batch, unless others are given."""
    values = setting.values
    steps = max(1, len(setting.train.labels) // values.batch)
    own = values.epochs or math.ceil((values.iterations or steps) / steps)
    return FineTuning(
        lr=lr,
        weight_decay=weight_decay,
        epochs=own if epochs is None else epochs,
        schedule="cosine",
        batch=values.batch if batch is None else batch,
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
    out, where = Path(out), choose_device(device)
    values, run = read_run(out)
    spec, listed = chosen_images(out, run, data)
    views = pairs(values, open_data(spec, values.reading, listed), where, count=images)
    rows = [row for row in read(out / "journal.jsonl") if "retrieval" in row]
    return {**dict(diagnose(trained_encoder(out, where), views())), "images": images, "trend": trend(rows)}


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
