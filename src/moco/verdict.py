"""`moco verdict`: every protocol at once, against every counterpart, ending in one sentence."""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moco.assess import by_training, raw_pixels
from moco.evaluate.diagnostics import PAIRS, diagnose
from moco.evaluate.fewlabel import AMOUNTS, Amount, Point, comparable, few_label_curve, on_features
from moco.evaluate.finetune import FineTuning
from moco.evaluate.knn import accuracy
from moco.evaluate.verdict import Contender, judge
from moco.files import write_atomically
from moco.images import pairs
from moco.report.few_labels import plot_few_labels
from moco.starts import Setting, Start, other_start, trained_start, untrained_start
from moco.supervised import Say, counterpart, planned, supervised
from moco.words import duration, some

TRAINED_REPEATS = 3
TRAINED_LABELS = 1000  # more labels than these are not fine-tuned on repeatedly
TRAINED_AMOUNTS = 2  # the largest of those that are left


@dataclasses.dataclass
class Row:
    """One start under every protocol; percent of test images.

    Attributes:
        name: of the start.
        knn_trunk, knn_output: kNN on trunk features and head output; None without a head of worth.
        linear: logistic regression on the trunk features, all labels.
        right: (Q,) which test images that classifier gets right.
        curve: logistic regression on frozen features, few labels.
        trained: fine-tuning, few labels.
    """

    name: str
    knn_trunk: float
    knn_output: float | None
    linear: float
    right: Tensor
    curve: list[Point]
    trained: list[Point]


def verdict(
    setting: Setting,
    *,
    others: Sequence[str] = (),
    with_supervised: bool = True,
    finetune: bool = True,
    amounts: Sequence[Amount] = AMOUNTS,
    repeats: int = 10,
    say: Say = print,
) -> dict[str, Any]:
    """Measure a run against its counterparts and say what it is worth.

    Writes `verdict.json` and `verdict.png` into the run's folder, at the end and whole.

    Args:
        setting: the run and the labelled images.
        others: weights from elsewhere, as for `moco.starts.other_start`.
        with_supervised: also train the same network on the same images with their labels, for as many
            epochs as the run, into the run's folder `supervised`; one of the same images that is there
            already is taken, or finished, and its epochs are named where they are not the run's.
        finetune: also fine-tune on few labels, from the run and from scratch, with the two largest amounts
            of at most 1,000 and of half of the images.
        amounts: of labels.
        repeats: splits of each amount; fine-tuning takes the first three.
        say: told what is going on.

    Returns:
        What `verdict.json` holds.

    Raises:
        FileExistsError: if the folder `supervised` holds the counterpart on other images.
        ValueError: if there are fewer than two repeats, weights do not fit, the setting is of a file, or
            images are too few for any amount of labels.
    """
    if not setting.out.is_dir():
        raise ValueError(
            f"{setting.out} is no run folder; a verdict is written into that of the run it is about"
        )
    if repeats < 2:
        raise ValueError(f"a verdict needs at least 2 repeats, whose spread is its evidence, got {repeats}")
    usable = comparable(setting.train.labels, amounts)
    started = time.perf_counter()
    folder = setting.out / "supervised"
    protocol = _planned(setting, folder) if with_supervised else None
    ours, untrained = trained_start(setting), untrained_start(setting)
    elsewhere = [other_start(setting, path) for path in others]
    options: dict[str, Any] = {"amounts": amounts, "repeats": repeats, "seed": setting.values.seed}
    rows = {}
    for start in (ours, untrained, *elsewhere):
        say(f"{start.name}: features, kNN and logistic regression")
        rows[start.name] = measure(setting, start, **options)
    say("raw pixels")
    rows["raw pixels"] = _raw_row(setting, **options)
    supervised_top1 = None
    if protocol is not None:
        supervised_top1 = supervised(setting, folder, protocol, say=say)[-1]["top1"]
        as_long = protocol.epochs == counterpart(setting).epochs
        name = "supervised, all labels" + ("" if as_long else f", {some(protocol.epochs, 'epoch')}")
        start = other_start(setting, str(folder), name=name)
        rows[start.name] = measure(setting, start, curve=False, **options)
    if few := [usable[n] for n in sorted(usable) if finetune and n <= TRAINED_LABELS][-TRAINED_AMOUNTS:]:
        splits = len(few) * min(repeats, TRAINED_REPEATS)
        told = _progress(say, "fine-tuning on few labels", 2 * splits)
        for start in ours, untrained:
            rows[start.name].trained = few_label_curve(
                by_training(setting, start, told), setting.train.labels, setting.test.labels,
                amounts=few, repeats=min(repeats, TRAINED_REPEATS), seed=setting.values.seed,
            )  # fmt: skip
    say("label-free diagnostics")
    views = pairs(setting.values, setting.data, setting.device, count=PAIRS)
    found = {start.name: dict(diagnose(start.encoder, views())) for start in (ours, untrained)}
    result = _conclude(setting, ours.name, rows, [start.name for start in elsewhere])
    result |= {
        "supervised_top1": supervised_top1,
        "diagnostics": found,
        "data": setting.spec,
        "images": len(setting.train.labels),
        "test_images": len(setting.test.labels),
        "classes": setting.classes,
        "knn": {"k": _k(setting), "temperature": setting.values.monitor.temperature},
        "repeats": repeats,
        "seconds": round(time.perf_counter() - started, 1),
    }
    plot_few_labels(setting.out / "verdict.png", rows.values(), result["sentence"])
    write_atomically(setting.out / "verdict.json", json.dumps(result, indent=1).encode())
    return result


def _planned(setting: Setting, folder: Path) -> FineTuning:
    try:
        return planned(setting, folder)
    except FileExistsError as error:
        raise FileExistsError(f"{error}: move it away, or leave it out with --no-supervised") from None


def _progress(say: Say, what: str, total: int) -> Callable[[], None]:
    """Something to call after each of so many equal parts, which says how long the others will take."""
    started, done = time.perf_counter(), 0
    say(f"{what}: {some(total, 'time')}")

    def one() -> None:
        nonlocal done
        done += 1
        left = (time.perf_counter() - started) * (total / done - 1)
        if done < total:
            say(f"{what}: {done} of {total}, about {duration(left)} left")

    return one


def measure(setting: Setting, start: Start, *, curve: bool = True, **options: Any) -> Row:
    """One start under kNN and logistic regression, with all labels and with few."""
    train, test = (start.features(p, setting.device) for p in (setting.train, setting.test))
    output = None
    if start.head:
        output = _knn(setting, train.output, test.output)
    return _row(setting, start.name, train.trunk, test.trunk, output, curve=curve, **options)


def _raw_row(setting: Setting, **options: Any) -> Row:
    train, test = raw_pixels(setting)
    return _row(setting, "raw pixels", train, test, None, curve=True, **options)


def _row(
    setting: Setting,
    name: str,
    train: Tensor,
    test: Tensor,
    output: float | None,
    *,
    curve: bool,
    **options: Any,
) -> Row:
    labels, answers = setting.train.labels, setting.test.labels
    learner = on_features(train, labels, test, setting.train.groups)
    points = few_label_curve(learner, labels, answers, **options) if curve else []
    right = learner(torch.arange(len(labels))[None])[0] == answers
    linear = round(100 * right.double().mean().item(), 3)
    return Row(name, _knn(setting, train, test), output, linear, right, points, [])


def _k(setting: Setting) -> int:
    return min(setting.values.monitor.k, len(setting.train.labels))


def _knn(setting: Setting, train: Tensor, test: Tensor) -> float:
    value = accuracy(
        test, setting.test.labels, train, setting.train.labels,
        k=_k(setting), temperature=setting.values.monitor.temperature, device=setting.device,
    )  # fmt: skip
    return round(value, 3)


def _conclude(setting: Setting, own: str, rows: dict[str, Row], elsewhere: list[str]) -> dict[str, Any]:
    mine, untrained, raw = (rows[name] for name in (own, "untrained network", "raw pixels"))
    ours = [Contender("this backbone", mine.curve)]
    without = [Contender("an untrained network", untrained.curve), Contender("raw pixels", raw.curve)]
    if mine.trained:
        ours.append(Contender("this backbone, fine-tuned", mine.trained))
        without.append(Contender("training from scratch", untrained.trained))
    others = [Contender(name, rows[name].curve) for name in elsewhere]
    judged = judge(ours, without, others, seed=setting.values.seed)
    evidence = list(judged.evidence)
    for name, row in rows.items():
        if row is not mine:
            gaps = 100 * (mine.right.double() - row.right.double())
            mean, half = gaps.mean().item(), 1.96 * gaps.std().item() / len(gaps) ** 0.5
            evidence.append(
                f"all {len(gaps):,} test images, linear on all labels: {mine.linear:.1f} % against "
                f"{row.linear:.1f} % with {name}, {mean:+.1f} points (95 % interval {mean - half:+.1f} to "
                f"{mean + half:+.1f}, paired over the images)"
            )
    return {
        "sentence": judged.sentence,
        "outcome": judged.outcome,
        "evidence": evidence,
        "rows": [_plain(row) for row in rows.values()],
    }


def _plain(row: Row) -> dict[str, Any]:
    """A row for JSON."""
    points = {
        kind: [p.row() for p in curve]
        for kind, curve in (("few_labels", row.curve), ("few_labels_fine_tuned", row.trained))
    }
    return {
        "name": row.name,
        "knn_trunk": row.knn_trunk,
        "knn_output": row.knn_output,
        "linear": row.linear,
        **points,
    }
