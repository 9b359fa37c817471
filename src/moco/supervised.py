"""Training with labels, kept in a folder: fine-tuning, and the supervised counterpart of a run."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moco import recipe_file
from moco.data.open import locate
from moco.encoder import digest
from moco.evaluate.finetune import Classifier, FineTuning, train_classifier
from moco.export.backbone import backbone_bytes
from moco.files import write_atomically
from moco.recipe import Recipe
from moco.run_folder import difference, image_facts, is_free
from moco.starts import Setting, Start, untrained_start
from moco.training.checkpoint import Checkpoints
from moco.weights import backbone_about

Say = Callable[[str], None]
Row = dict[str, float]


class Kept:
    """A training with labels in a folder: what it was begun with, and a row for every epoch.

    Args:
        note: the file that says so, in the folder.
        values: how images are prepared.
        plan: what else makes it this training: data and protocol, and weights that it begins from.

    Raises:
        FileExistsError: if the folder holds something else.
    """

    def __init__(self, note: Path, values: Recipe, plan: dict[str, Any]):
        self.note, self.rows = note, list[Row]()
        self.plan = json.loads(json.dumps({"recipe": recipe_file.to_dict(values), **plan}))
        known = _read(note)
        if known is not None:
            if found := _other(known["plan"], values, self.plan):
                raise FileExistsError(
                    f"{note.parent} holds another training ({found}); choose another folder, nothing was "
                    "overwritten"
                )
            self.rows = known["rows"]
        elif not note.exists() and not is_free(note.parent):
            raise FileExistsError(
                f"{note.parent} holds something else; choose another folder, nothing was overwritten"
            )

    @property
    def checkpoints(self) -> Path:
        """Folder of the state after each epoch."""
        return self.note.parent / "checkpoints"

    def write(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Yield the rows of the training as it goes on, each once it is written."""
        self.note.parent.mkdir(parents=True, exist_ok=True)
        self._write()
        for row in rows:
            self.rows = [*self.rows[: int(row["epoch"]) - 1], row]
            self._write()
            yield row

    def _write(self) -> None:
        write_atomically(self.note, json.dumps({"plan": self.plan, "rows": self.rows}).encode())


def _read(note: Path) -> dict[str, Any] | None:
    """The content of a note; None if there is none, or nothing was trained yet."""
    if not note.exists():
        return None
    known = json.loads(note.read_text())
    return known if known["rows"] or (note.parent / "checkpoints").exists() else None


def _other(known: dict[str, Any], values: Recipe, plan: dict[str, Any]) -> str:
    """The first value in which a plan that is known differs from one that is asked for."""
    if found := difference(recipe_file.from_dict(Recipe, known["recipe"]), values):
        return found
    if known.get("images") == plan["images"]:  # the same ones, wherever they lie now
        known = known | {"data": plan["data"]}
    known = known | {"data": locate(known["data"])}
    for name, asked in plan.items():
        if name == "weights" and known.get(name) != asked:
            return "it began from other weights"
        if name == "images" and known.get(name) != asked:
            return "its images have changed"
        if name != "recipe" and known.get(name) != asked:
            return f"{name} is {known.get(name)} there, {asked} here"
    return ""


def finetune(
    setting: Setting,
    start: Start,
    protocol: FineTuning,
    *,
    net: Classifier | None = None,
    folder: Path | None = None,
) -> Iterator[Row]:
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
    check_batch(setting, protocol)
    batch = protocol.batch
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


def finetune_in(out: str | Path, setting: Setting, start: Start, protocol: FineTuning) -> Iterator[Row]:
    """As `finetune`, kept in a folder with `finetune.json`: the same call again goes on from its last epoch.

    A training that is finished yields its last row.

    Raises:
        FileExistsError: if the folder holds something else.
        ValueError: if there are fewer images than one batch takes.
    """
    check_batch(setting, protocol)
    kept = Kept(
        Path(out) / "finetune.json",
        start.values,
        {
            "data": locate(setting.spec),
            "images": _fingerprints(setting),
            "weights": digest(start.encoder.trunk),
            **dataclasses.asdict(protocol),
        },
    )
    if len(kept.rows) == protocol.epochs:
        yield kept.rows[-1]
        return
    yield from kept.write(finetune(setting, start, protocol, folder=kept.checkpoints))


def _fingerprints(setting: Setting) -> list[str]:
    """Of the images learnt from and tested on and their classes, which changed files or labels change."""
    found = []
    for portion in setting.train, setting.test:
        which = hashlib.sha256(portion.indices.numpy().tobytes() + portion.labels.numpy().tobytes())
        found += [portion.source.fingerprint(), which.hexdigest()[:16]]
    return found


def check_batch(setting: Setting, protocol: FineTuning) -> None:
    """Refuse a batch that takes more images than there are labels.

    Raises:
        ValueError: if it does.
    """
    if len(setting.train.labels) < protocol.batch:
        raise ValueError(
            f"{setting.spec} has {len(setting.train.labels)} labelled training images, fewer than a batch "
            f"of {protocol.batch}; use a smaller --batch"
        )


def counterpart(
    setting: Setting,
    *,
    lr: float = 0.1,
    weight_decay: float = 1e-4,
    epochs: int | None = None,
    batch: int | None = None,
) -> FineTuning:
    """How a run's supervised counterpart is trained: its epochs and batch, unless others are given.

    The batch is no larger than the labels are many.
    """
    values, images = setting.values, len(setting.train.labels)
    steps = max(1, images // values.batch)
    own = values.epochs or math.ceil((values.iterations or steps) / steps)
    return FineTuning(
        lr=lr,
        weight_decay=weight_decay,
        epochs=own if epochs is None else epochs,
        schedule="cosine",
        batch=min(values.batch, images) if batch is None else batch,
    )


def planned(setting: Setting, out: Path) -> FineTuning:
    """How the counterpart in a folder is trained: as it was begun, else as `counterpart` says.

    Raises:
        FileExistsError: if the folder holds something else, such as the counterpart on other images.
        ValueError: if there are fewer images than one batch takes.
    """
    protocol, known = counterpart(setting), _read(out / "supervised.json")
    if known is not None:
        stored = {f.name: known["plan"][f.name] for f in dataclasses.fields(FineTuning)}
        protocol = FineTuning(**stored | {"milestones": tuple(stored["milestones"])})
    check_batch(setting, protocol)
    _kept(setting, out, protocol)
    return protocol


def supervised(setting: Setting, out: str | Path, protocol: FineTuning, *, say: Say = print) -> list[Row]:
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
        ValueError: if there are fewer images than one batch takes.
    """
    out = Path(out)
    check_batch(setting, protocol)
    kept, backbone = _kept(setting, out, protocol), out / "backbone.safetensors"
    if len(kept.rows) == protocol.epochs and backbone.exists():
        return kept.rows
    start = untrained_start(setting)
    net = start.classifier(setting)
    for row in kept.write(finetune(setting, start, protocol, net=net, folder=kept.checkpoints)):
        say(f"supervised, epoch {row['epoch']}: loss {row['loss']:.3f}, top-1 {row['top1']:.1f} %")
    source = setting.train.source
    facts = image_facts(source, source.fingerprint())
    about = backbone_about(setting.values, setting.channels, facts) | {"mechanism": "supervised"}
    write_atomically(backbone, backbone_bytes(net.trunk, about))
    return kept.rows


def _kept(setting: Setting, out: Path, protocol: FineTuning) -> Kept:
    plan = {"data": locate(setting.spec), "images": _fingerprints(setting), **dataclasses.asdict(protocol)}
    return Kept(out / "supervised.json", setting.values, plan)
