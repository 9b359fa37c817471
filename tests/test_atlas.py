"""The map of a set of images: its groups, neighbours and copies."""

import pytest
import torch
import torch.nn.functional as F

import moco
from moco.data.source import ArraySource
from moco.report import atlas as atlases
from moco.report.page import write_report


def test_k_means_finds_groups_that_are_there():
    torch.manual_seed(0)
    centres = F.normalize(torch.randn(4, 16), dim=1)
    truth = torch.arange(200) % 4
    features = F.normalize(centres[truth] + 0.05 * torch.randn(200, 16), dim=1)
    number_of, found = atlases.k_means(features, 4)
    for group in range(4):
        assert len(number_of[truth == group].unique()) == 1
    assert len(number_of.unique()) == 4
    torch.testing.assert_close((found @ centres.T).max(1).values, torch.ones(4), atol=0.01, rtol=0)


def test_pca_is_that_of_the_covariance():
    torch.manual_seed(0)
    features = torch.randn(50, 6) * torch.tensor([5.0, 3, 1, 1, 1, 1])
    how, place = atlases.project(features, "pca")
    centred = features - features.mean(0)
    values, axes = torch.linalg.eigh(centred.T @ centred)
    expected = centred @ axes[:, [5, 4]]
    for axis in 0, 1:
        correlation = torch.corrcoef(torch.stack([place[:, axis], expected[:, axis]]))[0, 1].abs()
        assert correlation > 0.9999
    assert f"{100 * (values[-2:].sum() / values.sum()):.0f} %" in how
    assert (place.min(), place.max()) == (0, 1)
    how, place = atlases.project(torch.ones(50, 6), "pca")
    assert "which hold 0 % of it" in how
    assert place.isfinite().all()
    with pytest.raises(ValueError, match="must be pca or tsne, got 'umap'"):
        atlases.project(features, "umap")


def test_copies_of_an_image_are_found(run):
    pixels = torch.randint(0, 256, (30, 3, 16, 16), dtype=torch.uint8)
    pixels[17] = pixels[4]
    found = atlases.build_atlas(moco.weights.open_weights(run), ArraySource(pixels))
    one, two, similarity, same = found.pairs[0]
    assert {found.names[one], found.names[two]} == {"4", "17"}
    assert similarity == pytest.approx(1, abs=1e-4)
    assert same
    assert all(i not in row for i, row in enumerate(found.neighbours.tolist()))
    assert sum(cluster.size for cluster in found.clusters) == 30
    assert found.agreement is None
    with pytest.raises(ValueError, match="at least 10 images"):
        atlases.build_atlas(moco.weights.open_weights(run), ArraySource(pixels[:9]))


def test_images_of_no_class_agree_with_none(run):
    pixels = torch.randint(0, 256, (30, 3, 16, 16), dtype=torch.uint8)
    classes = torch.arange(30) % 2
    weights = moco.weights.open_weights(run)
    known = torch.arange(30) < 20
    found = atlases.build_atlas(weights, ArraySource(pixels, torch.where(known, classes, -1)))
    full = atlases.build_atlas(weights, ArraySource(pixels, classes))
    assert found.chance_agreement == pytest.approx(100 * 9 / 19)
    place = torch.tensor([int(name) for name in full.names])
    rows = full.neighbours
    both = (place[rows] < 20) & (place[:, None] < 20)
    same = classes[place[rows]] == classes[place][:, None]
    assert found.agreement == pytest.approx(100 * same[both].double().mean().item())
    assert atlases.build_atlas(weights, ArraySource(pixels, torch.full((30,), -1))).agreement is None


def test_neighbours_without_a_class_are_not_crossed(run, tmp_path, monkeypatch):
    """Nor is the map without its colours by class because the first image has none."""
    pixels = torch.randint(0, 256, (30, 3, 16, 16), dtype=torch.uint8)
    one = torch.full((30,), -1).where(torch.arange(30) != 7, 1)
    atlas = atlases.build_atlas(moco.weights.open_weights(run), ArraySource(pixels, one))
    assert sum(map(bool, atlas.labels)) == 1
    monkeypatch.setattr("moco.report.page.build_atlas", lambda *_, **__: atlas)
    text = write_report([run], tmp_path / "page.html").read_text()
    assert "of another class" not in text
    assert 'class="wrong"' not in text
    assert '<option value="labels">' in text


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(3, 40, 200, dtype=torch.uint8),
        torch.arange(2 * 70 * 70).reshape(2, 70, 70).to(torch.int32),
        torch.rand(5, 9, 9),
        torch.zeros(1, 1, 1, dtype=torch.uint8),
    ],
)
def test_thumbnails_of_any_image(pixels):
    image = atlases.thumbnail(pixels)
    assert image.mode == "RGB"
    assert image.width == image.height
    assert image.width % 8 == 0
    assert image.width <= 64
