"""Features of many images: computed in parts, and searched."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from moco.data.loader import plain_batches
from moco.data.source import ArraySource, Source
from moco.encoder import digest
from moco.evaluate.features import extract
from moco.images import check_form
from moco.weights import Weights

LAYERS = ("trunk", "output")


@dataclass(frozen=True)
class Embeddings:
    """Features of M images.

    Attributes:
        names: what each image is called: its path below the folder, or its number in an array.
        labels: class of each image by name, "" where there is none.
        features: (M, D).
        groups: (M,) which patient, video or site each image shows, by number; None where nothing says.
        weights: `moco.encoder.digest` of the network that gave them, trunk or encoder; "" if not known.
    """

    names: list[str]
    labels: list[str]
    features: Tensor
    groups: Tensor | None = None
    weights: str = ""

    def __repr__(self) -> str:
        return f"Embeddings({len(self.names):,} images, {self.features.shape[1]} features each)"


def embed(
    weights: Weights,
    source: Source,
    *,
    layer: str = "trunk",
    indices: Tensor | None = None,
    batch: int = 500,
    lost: list[str] | None = None,
) -> Iterator[Embeddings]:
    """Features of a source's images, part by part and in order; those that cannot be read are left out.

    Args:
        weights: whose encoder; it stays where it is.
        source: the images.
        layer: "trunk" (what is kept after pre-training) or "output" (the head's unit-length vectors).
        indices: which images; None takes all.
        batch: images per part.
        lost: the names of those left out are added to it.

    Raises:
        ValueError: if there is no such layer, the images have another number of channels, or none can
            be read.
    """
    if layer not in LAYERS:
        raise ValueError(f"the layer must be one of {', '.join(LAYERS)}, got {layer!r}")
    if layer == "output" and not weights.has_head:
        raise ValueError(f"{weights.path} holds no head, so there is no output; take the trunk")
    check_form(source, weights.about)
    chosen = torch.arange(len(source)) if indices is None else indices
    device = next(weights.encoder.parameters()).device
    labels, found, whose = image_labels(source), 0, _digest(weights, layer)
    for part in chosen.split(batch):
        unreadable: set[int] = set()
        images = plain_batches(source, weights.views, part, batch=batch, device=device, unreadable=unreadable)
        first = list(itertools.islice(images, 1))
        features = getattr(extract(weights.encoder, itertools.chain(first, images)), layer) if first else None
        numbers = [i for place, i in enumerate(part.tolist()) if place not in unreadable]
        if lost is not None:
            lost += [image_name(source, int(part[place])) for place in sorted(unreadable)]
        if features is not None:
            found += len(numbers)
            groups = None if source.groups is None else source.groups[numbers]
            names = [image_name(source, i) for i in numbers]
            yield Embeddings(names, [labels[i] for i in numbers], features, groups, whose)
    if not found:
        raise ValueError(f"none of the {len(chosen):,} images of {source.name} can be read")


def layer_of(found: Embeddings, weights: Weights) -> str:
    """Which layer of these weights gave features.

    Raises:
        ValueError: if none did.
    """
    for layer in LAYERS if weights.has_head else LAYERS[:1]:
        if found.weights == _digest(weights, layer):
            return layer
    raise ValueError(
        f"these features are of other weights ({found.weights or 'not said which'}) than {weights.path} "
        f"({_digest(weights, 'trunk')}): embed the images with these, or name the run or file they came from"
    )


def _digest(weights: Weights, layer: str) -> str:
    return digest(weights.encoder.trunk if layer == "trunk" else weights.encoder)


def image_name(source: Source, i: int) -> str:
    """What an image is called in tables: its path below the folder, or its number in an array."""
    return str(i) if isinstance(source, ArraySource) else source.sample_name(i)


def image_labels(source: Source) -> list[str]:
    """The class of each image by name, "" where there is none."""
    if source.labels is None:
        return [""] * len(source)
    names = dict(enumerate(source.classes))
    return ["" if label < 0 else names.get(label, str(label)) for label in source.labels.tolist()]


def joined(parts: Iterator[Embeddings]) -> Embeddings:
    """All parts as one."""
    whole = list(parts)
    names, labels = ([x for part in whole for x in getattr(part, kind)] for kind in ("names", "labels"))
    groups = [part.groups for part in whole if part.groups is not None]
    features = torch.cat([part.features for part in whole])
    return Embeddings(names, labels, features, torch.cat(groups) if groups else None, whole[0].weights)
