"""What the features put together: a map, nearest neighbours, clusters, outliers, and pairs too alike."""

import base64
import contextlib
import io
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from moco import chance
from moco.data.source import Source
from moco.embeddings import embed, joined
from moco.evaluate.knn import nearest
from moco.weights import Weights

NEIGHBOURS = 8
_SHOWN = 9  # images of a cluster, a row of the page
_GREY_SIDE = 12  # pixels of the small grey copies that tell a duplicate from a look-alike
_SAME_PIXELS = 0.95
_MAPS = {"pca": "PCA", "tsne": "t-SNE"}


@dataclass(frozen=True)
class Cluster:
    """Images near one centre.

    Attributes:
        images: those nearest to the centre first.
        size: how many there are.
        tightness: mean cosine similarity to the centre.
        classes: the commonest classes with their shares; empty without labels.
    """

    images: list[int]
    size: int
    tightness: float
    classes: list[tuple[str, float]]


@dataclass(frozen=True)
class Atlas:
    """Some images of a source, as features arrange them; images are numbered 0 to M - 1 throughout.

    Attributes:
        names, labels: of the images; labels are "" without classes.
        places: maps, each its name, how places were found, and (M, 2) places in [0, 1].
        cluster: (M,) number of each image's cluster.
        neighbours: (M, 8) most similar images, and their cosine similarities.
        agreement: share of those neighbours of the same class, in percent; None without labels.
        chance_agreement: the same for neighbours drawn at random.
        clusters: the largest first.
        outliers: images least like their neighbours, with that similarity.
        pairs: most similar pairs, with their similarity and whether the pixels are nearly the same.
        sprite: all thumbnails in one JPEG, row by row, as a data address.
        columns: thumbnails in a row.
    """

    names: list[str]
    labels: list[str]
    places: list[tuple[str, str, Float[Tensor, "M 2"]]]
    cluster: Int[Tensor, " M"]
    neighbours: Int[Tensor, "M 8"]
    similarity: Float[Tensor, "M 8"]
    agreement: float | None
    chance_agreement: float | None
    clusters: list[Cluster]
    outliers: list[tuple[int, float]]
    pairs: list[tuple[int, int, float, bool]]
    sprite: str
    columns: int

    def label(self, image: int) -> str:
        """An image in words."""
        return f"{self.names[image]} {self.labels[image]}".strip()


def build_atlas(
    weights: Weights, source: Source, *, images: int = 800, projection: str = "pca", seed: int = 0
) -> Atlas:
    """Arrange some images of a source by what weights make of them.

    Args:
        weights: whose trunk's features.
        source: the images.
        images: how many at most, drawn by the seed.
        projection: "pca", or "tsne" (needs scikit-learn) for a map of that kind besides.
        seed: keys every draw.

    Raises:
        ValueError: if there are fewer than ten images, or no such projection.
        ModuleNotFoundError: if scikit-learn is needed and not there.
    """
    if len(source) < 10:
        raise ValueError(f"a map needs at least 10 images, {source.name} has {len(source)}")
    count = min(images, len(source))
    chosen = torch.from_numpy(chance.permute(np.arange(count), len(source), seed, "atlas"))
    read = _thumbnails(source, chosen)
    thumbnails, chosen = [image for _, image in read], torch.tensor([index for index, _ in read])
    count = len(chosen)
    if count < 10:
        raise ValueError(f"a map needs at least 10 images, of {source.name} only {count} could be read")
    found = joined(embed(weights, source, indices=chosen))
    features = F.normalize(found.features, dim=1)
    similarity, rows = nearest(features, features, NEIGHBOURS + 1)
    similarity, rows = _without_self(similarity, rows)
    cluster, centres = k_means(features, max(2, min(12, count // 25)), seed=seed)
    kinds = dict.fromkeys([projection, "pca"])
    places = [(_MAPS.get(kind, kind), *project(features, kind, seed=seed)) for kind in kinds]
    agreement = at_random = None
    if source.labels is not None:
        label = source.labels[chosen]
        both = (label[rows] >= 0) & (label[:, None] >= 0)  # -1 is no class
        if both.any():
            agreement = 100 * (label[rows] == label[:, None])[both].double().mean().item()
            shares = label[label >= 0].bincount().double()
            at_random = 100 * ((shares * (shares - 1)).sum() / (shares.sum() * (shares.sum() - 1))).item()
    sprite, columns = _sprite(thumbnails)
    return Atlas(
        names=found.names,
        labels=found.labels,
        places=places,
        cluster=cluster,
        neighbours=rows,
        similarity=similarity,
        agreement=agreement,
        chance_agreement=at_random,
        clusters=_clusters(features, cluster, centres, found.labels),
        outliers=_outliers(similarity),
        pairs=_pairs(similarity, rows, thumbnails),
        sprite=sprite,
        columns=columns,
    )


def _thumbnails(source: Source, chosen: Tensor) -> list[tuple[int, Image.Image]]:
    """Those of the images that can be read, with their numbers."""
    found = []
    for index in chosen.tolist():
        with contextlib.suppress(RuntimeError):
            found.append((index, thumbnail(source.read(index))))
    return found


def project(features: Float[Tensor, "M D"], kind: str, *, seed: int = 0) -> tuple[str, Tensor]:
    """How places were found, and places in the unit square.

    Raises:
        ValueError: if there is no such projection.
        ModuleNotFoundError: if scikit-learn is needed and not there.
    """
    if kind == "pca":
        centred = features - features.mean(0)
        _, scale, axes = torch.linalg.svd(centred, full_matrices=False)
        place = centred @ axes[:2].T
        place = place * place[place.abs().argmax(0), torch.arange(2)].sign()  # signs of axes are arbitrary
        whole = scale.square().sum().item() or 1.0  # 0 where all features are the same
        share = 100 * scale[:2].square().sum().item() / whole
        how = f"the two directions of greatest variance, which hold {share:.0f} % of it"
    elif kind == "tsne":
        try:
            from sklearn.manifold import TSNE
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "--projection tsne needs scikit-learn: pip install scikit-learn"
            ) from None
        method = TSNE(random_state=seed, init="pca", perplexity=min(30, len(features) / 4))
        place = torch.from_numpy(method.fit_transform(features.numpy()))
        how = "t-SNE: neighbours are kept, distances between groups mean little"
    else:
        raise ValueError(f"the projection must be pca or tsne, got {kind!r}")
    low, high = place.min(0).values, place.max(0).values
    return how, (place - low) / (high - low).clamp(min=1e-12)


def k_means(
    features: Float[Tensor, "M D"], k: int, *, seed: int = 0, rounds: int = 50
) -> tuple[Tensor, Tensor]:
    """Clusters of unit-length features by cosine: the number of each image's, (M,), and centres (k, D).

    Centres begin far apart (each drawn with a probability that grows with the distance to the
    nearest one so far) and move until none does.
    """
    generator = chance.generator(seed, "clusters")
    centres = features[torch.randint(len(features), (1,), generator=generator)]
    while len(centres) < k:
        distance = (1 - (features @ centres.T).max(1).values).clamp(min=1e-9)
        centres = torch.cat([centres, features[torch.multinomial(distance, 1, generator=generator)]])
    number = (features @ centres.T).argmax(1)
    for _ in range(rounds):
        sums = torch.zeros_like(centres).index_add_(0, number, features)
        filled = number.bincount(minlength=k)[:, None] > 0
        centres = torch.where(filled, F.normalize(sums, dim=1), centres)
        before, number = number, (features @ centres.T).argmax(1)
        if torch.equal(before, number):
            break
    return number, centres


def thumbnail(pixels: Tensor, most: int = 64) -> Image.Image:
    """A square RGB thumbnail of an image of any channels and depth; its side is a multiple of eight."""
    values = pixels.float()
    if pixels.dtype != torch.uint8:  # deeper or floating pixels: from their least to their greatest
        values = 255 * (values - values.min()) / (values.max() - values.min()).clamp(min=1e-12)
    shown = values[:3] if len(values) >= 3 else values[:1].expand(3, -1, -1)
    image = Image.fromarray(shown.round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy())
    side = max(16, min(most, 8 * math.ceil(min(image.size) / 8)))
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    square = image.crop((left, top, left + short, top + short))
    return square.resize((side, side), Image.Resampling.LANCZOS)


def _sprite(thumbnails: list[Image.Image]) -> tuple[str, int]:
    """All thumbnails in one JPEG, as a data address, and how many there are in a row."""
    side, columns = max(image.width for image in thumbnails), math.ceil(math.sqrt(len(thumbnails)))
    whole = Image.new("RGB", (side * columns, side * math.ceil(len(thumbnails) / columns)))
    for number, image in enumerate(thumbnails):
        row, column = divmod(number, columns)
        image = image if image.width == side else image.resize((side, side), Image.Resampling.LANCZOS)
        whole.paste(image, (side * column, side * row))
    content = io.BytesIO()
    whole.save(content, "JPEG", quality=82, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode(), columns


def _without_self(similarity: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbours without the image itself, which need not come first when there are copies of it."""
    own = rows == torch.arange(len(rows))[:, None]
    own[~own.any(1), -1] = True
    kept = ~own
    return similarity[kept].view(len(rows), -1), rows[kept].view(len(rows), -1)


def _clusters(features: Tensor, cluster: Tensor, centres: Tensor, labels: list[str]) -> list[Cluster]:
    found = []
    for number in range(len(centres)):
        members = (cluster == number).nonzero().squeeze(1)
        if not len(members):
            continue
        closeness = features[members] @ centres[number]
        order = members[closeness.argsort(descending=True, stable=True)].tolist()
        names = [labels[i] for i in order if labels[i]]
        common = sorted(set(names), key=lambda name: (-names.count(name), name))[:3]
        shares = [(name, names.count(name) / len(order)) for name in common]
        found.append(Cluster(order[:_SHOWN], len(order), closeness.mean().item(), shares))
    return sorted(found, key=lambda one: -one.size)


def _outliers(similarity: Tensor, count: int = 16) -> list[tuple[int, float]]:
    closeness = similarity[:, :5].mean(1)
    order = closeness.argsort(stable=True)[:count]
    return [(i, round(closeness[i].item(), 3)) for i in order.tolist()]


def _pairs(
    similarity: Tensor, rows: Tensor, thumbnails: list[Image.Image], count: int = 12
) -> list[tuple[int, int, float, bool]]:
    """The most similar pairs, and whether their pixels are nearly the same too."""
    greys = [np.asarray(t.convert("L").resize((_GREY_SIDE,) * 2), np.float32).ravel() for t in thumbnails]
    small = F.normalize(torch.from_numpy(np.stack([g - g.mean() for g in greys])), dim=1)
    found = {
        (min(i, j), max(i, j)): s
        for i, (j, s) in enumerate(zip(rows[:, 0].tolist(), similarity[:, 0].tolist(), strict=True))
    }
    best = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:count]
    return [(i, j, round(s, 3), bool(small[i] @ small[j] > _SAME_PIXELS)) for (i, j), s in best]
