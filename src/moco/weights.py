"""Weights: a run, the backbone it left, or another package's file, as one thing to measure and use."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import moco
from moco import encoder, recipe
from moco.build import build_encoder
from moco.data.augmentation import Augmentation
from moco.data.open import open_source
from moco.data.quarantine import read_quarantine
from moco.data.reading import Reading
from moco.data.source import Source
from moco.data.views import Views
from moco.export.backbone import backbone_metadata, backbone_path, build_trunk
from moco.export.foreign import head_kind, read_foreign
from moco.export.target import Exported, export_backbone, missing
from moco.export.targets import TARGETS, target
from moco.images import as_trained, check_form
from moco.processor import measuring_precision
from moco.recipe import Recipe
from moco.run_folder import chosen_images, read_run
from moco.training.checkpoint import Checkpoints

READING = ("channels", "bits", "alpha", "background")
"""What a backbone file says of `Reading`: what changes the pixels."""


@dataclass(frozen=True, repr=False)
class Weights:
    """An encoder with what is needed to feed it.

    Attributes:
        path: where it was found.
        encoder: in evaluation mode; without a head its output is the trunk's features, unit-length.
        has_head: whether the head of pre-training is there too.
        values: the recipe; of a file, one that holds its architecture and how images are prepared only.
        about: what a backbone file says about itself.
        run: what the run knows of its data and machine; empty for a file.
        step: steps trained, where that is known.
    """

    path: Path
    encoder: encoder.Encoder
    has_head: bool
    values: Recipe
    about: dict[str, Any]
    run: dict[str, Any]
    step: int | None = None

    @property
    def views(self) -> Views:
        """How images are prepared."""
        return Views(self.values.views)

    def __repr__(self) -> str:
        size, channels = self.about["size"], self.about["channels"]
        origin = f" of {self.about['origin']}" if "origin" in self.about else ""
        head = "with head" if self.has_head else "without head"
        return f"Weights({self.path}: {describe(self.about)}{origin}, {channels} x {size} x {size}, {head})"


def open_weights(path: str | Path, device: torch.device | str = "cpu") -> Weights:
    """The weights at a path.

    Args:
        path: a run folder, of which the newest whole checkpoint is taken; a
            `backbone.safetensors`; or a checkpoint of the released code, lightly, solo-learn or
            torchvision.
        device: where the encoder goes.

    Raises:
        FileNotFoundError: if nothing is there, or a run without checkpoint.
        ValueError: if the file holds no network that is understood.
    """
    path, device = Path(path), torch.device(device)
    if not path.is_file():
        values, run = read_run(path)
        found = Checkpoints(path / "checkpoints").load(device, resuming=False)
        if found is not None:
            net = build_encoder(values, run["channels"]).to(device)
            net.load_state_dict(found[1]["f_q"])
            net.autocast = measuring_precision(values.precision, device)
            facts = backbone_about(values, run["channels"], run)
            return Weights(path, net.eval(), True, values, facts, run, found[0])
        if not (path / "backbone.safetensors").exists():
            raise FileNotFoundError(f"{path} has no checkpoint yet")
        return _of_file(path / "backbone.safetensors", device, values, run)
    return _of_file(path, device, None, {})


def trained_encoder(out: Path, device: torch.device) -> encoder.Encoder:
    """The query encoder of a run's newest whole checkpoint, in evaluation mode.

    Raises:
        FileNotFoundError: if the folder holds no run, or no checkpoint yet.
    """
    read_run(out)
    return open_weights(out, device).encoder


def backbone_about(values: Recipe, channels: int, run: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a backbone file says about itself: how to rebuild the network, how to feed it, where it is from.

    Args:
        values: the recipe.
        channels: of the images.
        run: what the run knows of its images; None leaves them out.
    """
    facts = {
        "arch": values.encoder.arch,
        "width": values.encoder.width,
        "stem": values.encoder.stem,
        "channels": channels,
        "size": values.views.eval_size or values.views.size,
        "range": values.views.range,
        "mean": values.views.mean,
        "std": values.views.std,
        "reading": {name: getattr(values.reading, name) for name in READING},
        "precision": values.precision,
        "mechanism": recipe.mechanism(values),
        "recipe": values.name,
        "moco": moco.__version__,
    }
    if run is not None:
        facts |= {name: run.get(name) for name in ("pixels", "image_size")}
        facts["trained_on"] = f"{run['images']} images, fingerprint {run['fingerprint']}"
    return facts


def known_range(about: dict[str, Any]) -> tuple[float, float] | None:
    """The pixel values that become 0 and 1, where a file says them."""
    if not about.get("range"):
        return None
    low, high = about["range"]
    return low, high


def describe(about: dict[str, Any]) -> str:
    """An architecture in a few words."""
    width = f", width {about['width']}" if about["width"] is not None else ""
    stem = f", {about['stem']} stem" if about["stem"] != "imagenet" else ""
    return f"{about['arch']}{width}{stem}"


def _of_file(path: Path, device: torch.device, values: Recipe | None, run: dict[str, Any]) -> Weights:
    """The weights of a file, whoever wrote it."""
    known, head = backbone_metadata(path), dict[str, Tensor]()
    if "origin" in known:
        found = read_foreign(path)
        tensors, head = found.trunk, found.head
    else:
        tensors = load_file(str(backbone_path(path)))
    trunk = build_trunk(known, tensors)
    with torch.no_grad():
        features = trunk(torch.zeros(1, known["channels"], known["size"], known["size"])).shape[1]
    kind = head_kind(head, features)
    top: nn.Module = nn.Identity()
    if kind is not None:
        top = encoder.head("mlp" if kind[0] == "mlp" else "linear", features, kind[1])
        top.load_state_dict(head)
    if values is None:
        settings = recipe.Encoder(known["arch"], known["width"], known["stem"], dim=kind[1] if kind else 128)
        views = dataclasses.replace(
            Augmentation(),
            size=known["size"],
            range=known_range(known),
            mean=tuple(known["mean"]),
            std=tuple(known["std"]),
        )
        reading = Reading(**known.get("reading", {}))
        precision = known.get("precision", "float32")
        values = Recipe(name=path.name, encoder=settings, views=views, reading=reading, precision=precision)
    autocast = measuring_precision(values.precision, device)
    net = encoder.Encoder(trunk, top, autocast=autocast).to(memory_format=torch.channels_last)
    return Weights(path, net.to(device).eval(), kind is not None, values, known, run)


def images_of(weights: Weights, data: str | None, split: str = "train") -> Source:
    """The images to use weights on.

    Args:
        weights: from a run, which knows its images, or a file, which does not.
        data: what `open_source` takes; None takes the run's own.
        split: "train" or "test".

    Raises:
        FileNotFoundError: if there are no images.
        ValueError: if it is not known which, or there are no test images.
    """
    source = images_if_any(weights, data, split)
    if source is None:
        raise ValueError(f"{data or weights.run['data']} has no {split} images")
    return source


def images_if_any(weights: Weights, data: str | None, split: str) -> Source | None:
    """As `images_of`; None if there are no test images."""
    spec, listed = chosen_images(weights.path, weights.run, data)
    quarantine = read_quarantine(listed) if listed else frozenset[str]()
    reading = as_trained(weights.values.reading, weights.about.get("pixels"))
    source = open_source(spec, split, reading=reading, quarantine=quarantine)
    if source is not None:
        check_form(source, weights.about)
    return source


def export_weights(
    path: str | Path,
    to: Sequence[str],
    *,
    out: str | Path | None = None,
    licence: str = "unstated",
) -> list[Exported]:
    """Write weights for other libraries, load them there, and compare the features.

    Args:
        path: what `open_weights` takes.
        to: names of `moco.export.targets.TARGETS`, or "all" for every one that can express the network.
        out: the folder, with one subfolder per library; None takes RUN/export, or export beside a file.
        licence: what the files say.

    Raises:
        ValueError: if there is no such target, or it cannot express the network; nothing is written then.
        ModuleNotFoundError: if a target needs a package to be written; nothing is written then.
        RuntimeError: if the features differ by more than rounding; of "all" such a target is marked and
            the others are written.
    """
    every = "all" in to
    targets = list(TARGETS.values()) if every else [target(name) for name in to]
    weights = open_weights(path)
    about = weights.about | {"licence": licence}
    folder = (
        Path(out) if out is not None else (weights.path if weights.path.is_dir() else weights.path.parent)
    )
    folder = folder if out is not None else folder / "export"
    net = weights.encoder.trunk.to(memory_format=torch.contiguous_format)
    possible, done = [], []
    for place in targets:
        try:
            place.lines(about, folder / place.name)
            if absent := missing(place.writes_with):
                raise ModuleNotFoundError(f"--to {place.name} needs pip install {' '.join(absent)}")
            possible.append(place)
        except (ValueError, ModuleNotFoundError) as error:
            if not every:
                raise
            done.append(Exported(place.name, "", [], None, str(error)))
    written = []
    for place in possible:
        try:
            written.append(export_backbone(net, about, place, folder / place.name))
        except Exception as error:  # a library's exporter may raise anything
            if not every:
                raise
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            written.append(Exported(place.name, "", [], None, reason, failed=True))
    return written + done
