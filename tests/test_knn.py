import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from moco.assess import measure_knn
from moco.build import build_encoder, resolve
from moco.encoder import Encoder, trunk
from moco.evaluate import knn as knn_module
from moco.evaluate.features import calibrate, extract, pixels
from moco.evaluate.knn import _largest, accuracy, knn, knn_predict, nearest
from moco.export.backbone import backbone_bytes
from moco.images import labelled, portions
from tiny import tiny_data, tiny_recipe

CPU = torch.device("cpu")


def slow_knn(queries, bank, labels, k, temperature):
    """One query at a time, in the words of the definition."""
    result = []
    for query in queries:
        similarity = torch.stack([torch.cosine_similarity(query, b, dim=0) for b in bank])
        votes = {}
        for index in similarity.argsort(descending=True)[:k].tolist():
            label = int(labels[index])
            votes[label] = votes.get(label, 0.0) + float(torch.exp(similarity[index] / temperature))
        result.append(max(sorted(votes), key=votes.__getitem__))
    return torch.tensor(result)


@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize(("query_rows", "bank_rows"), [(500, 65_536), (7, 11)])
def test_equals_the_definition_however_it_is_chunked(monkeypatch, k, query_rows, bank_rows):
    monkeypatch.setattr(knn_module, "_QUERIES", query_rows)
    monkeypatch.setattr(knn_module, "_BANK", bank_rows)
    torch.manual_seed(0)
    queries, bank = torch.randn(30, 6, dtype=torch.float64), torch.randn(40, 6, dtype=torch.float64)
    labels = torch.randint(4, (40,))
    expected = slow_knn(queries, bank, labels, k, 0.1)
    assert torch.equal(knn_predict(queries, bank, labels, k=k, temperature=0.1), expected)


def test_nearest_is_a_full_sort(unit, monkeypatch):
    monkeypatch.setattr(knn_module, "_BANK", 7)
    queries, bank = unit(5, 8, dtype=torch.float32), unit(40, 8, seed=1, dtype=torch.float32)
    similarity, rows = nearest(3 * queries, 0.1 * bank, 9)
    expected = (queries @ bank.T).sort(dim=1, descending=True)
    assert torch.equal(rows, expected.indices[:, :9])
    torch.testing.assert_close(similarity, expected.values[:, :9])
    with pytest.raises(ValueError, match="k must be between 1 and the 40 images searched, got 41"):
        nearest(queries, bank, 41)


def test_equals_scikit_learn_unweighted():
    neighbours = pytest.importorskip("sklearn.neighbors")
    torch.manual_seed(0)
    queries, bank = torch.randn(200, 8, dtype=torch.float64), torch.randn(300, 8, dtype=torch.float64)
    labels = torch.randint(3, (300,))
    model = neighbours.KNeighborsClassifier(7, metric="cosine", algorithm="brute").fit(bank, labels)
    ours = knn_predict(queries, bank, labels, k=7, temperature=math.inf)
    assert ours.tolist() == model.predict(queries).tolist()


@pytest.mark.parametrize(
    ("width", "k"), [(3000, 100), (3007, 187), (3007, 188), (3007, 20), (40, 40), (9, 1)]
)
def test_the_largest_values_are_found_in_the_groups_of_largest_maximum(width, k):
    values = torch.randn(5, width, generator=torch.Generator().manual_seed(width + k))
    values[:, ::7] += 3  # large ones side by side in the strided groups
    best, index = _largest(values, k)
    ordered = best.sort(dim=1, descending=True).values
    torch.testing.assert_close(ordered, values.topk(k, dim=1).values, rtol=0, atol=0)
    torch.testing.assert_close(values.gather(1, index), best, rtol=0, atol=0)
    assert all(len(set(row)) == k for row in index.tolist())


def test_separated_classes_are_all_right_and_shuffled_labels_are_chance():
    torch.manual_seed(0)
    labels = torch.arange(400) % 4
    features = torch.eye(4)[labels] + 0.05 * torch.randn(400, 4)
    assert accuracy(features[:100], labels[:100], features[100:], labels[100:], k=20) == 100
    mixed = labels[torch.randperm(400)]
    chance = accuracy(features[:100], mixed[:100], features[100:], mixed[100:], k=20)
    assert 10 < chance < 42


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be between 1 and the 9 images searched, got 0"),
        ({"k": 10}, "k must be between 1 and the 9 images searched, got 10"),
        ({"k": 3, "temperature": 0.0}, "the temperature must be above 0"),
    ],
)
def test_impossible_votes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        knn_predict(torch.randn(2, 3), torch.randn(9, 3), torch.zeros(9, dtype=torch.long), **options)


@pytest.mark.parametrize("broken", [0, 1])
def test_features_that_are_not_finite_are_worth_no_number(broken):
    features = [torch.randn(2, 3), torch.randn(9, 3)]
    features[broken][1, 2] = torch.nan
    with pytest.raises(ValueError, match="the features are not finite; the checkpoint is broken"):
        knn_predict(*features, torch.zeros(9, dtype=torch.long), k=3)


@pytest.fixture
def encoder_and_sets():
    data = tiny_data()
    values = resolve(tiny_recipe(), data, CPU)
    sets = labelled(values, data, CPU)
    assert sets is not None
    return build_encoder(values, 3), *sets


def test_evaluation_moves_nothing(encoder_and_sets):
    encoder, bank, queries = encoder_and_sets
    encoder.train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    values = dict(knn(encoder, bank, queries, k=10))
    assert set(values) == {"knn_trunk", "knn_output"}
    assert encoder.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_features_of_both_layers(encoder_and_sets):
    encoder, bank, _ = encoder_and_sets
    features = extract(encoder, bank.batches())
    assert features.trunk.shape == (100, 64)
    torch.testing.assert_close(features.output.norm(dim=1), torch.ones(100))
    assert pixels(bank.batches(), side=4).shape == (100, 48)


def test_calibration_sets_the_statistics_of_the_images(encoder_and_sets):
    encoder, bank, _ = encoder_and_sets
    batches = list(bank.batches())
    calibrate(encoder, batches)
    first = encoder.trunk.conv1(batches[0])
    torch.testing.assert_close(encoder.trunk.bn1.running_mean, first.mean((0, 2, 3)))
    assert encoder.trunk.bn1.group_size == 4
    assert encoder.trunk.bn1.momentum == 0.1


class ActivatedNorm(nn.BatchNorm2d):
    """As timm has it."""

    def forward(self, x):
        return F.relu(super().forward(x))


def test_calibration_reaches_every_batch_normalisation():
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3), ActivatedNorm(4), nn.Flatten(), nn.BatchNorm1d(144))
    batches = [3 + 2 * torch.randn(50, 3, 8, 8) for _ in range(3)]
    calibrate(Encoder(trunk, nn.Linear(144, 4)), batches)
    means = torch.stack([trunk[0](images).mean((0, 2, 3)) for images in batches])
    torch.testing.assert_close(trunk[1].running_mean, means.mean(0))
    passed = torch.stack([trunk[:3].train()(images).mean(0) for images in batches])
    torch.testing.assert_close(trunk[3].running_mean, passed.mean(0))
    assert (trunk[1].momentum, trunk[3].momentum) == (0.1, 0.1)


def test_without_test_images_every_fifth_is_a_query():
    data = tiny_data()
    held = labelled(resolve(tiny_recipe(), data, CPU), type(data)(data.train, None), CPU)
    assert held is not None
    bank, queries = held
    assert (len(bank.labels), len(queries.labels)) == (80, 20)
    data.train.groups = torch.arange(100) // 7  # fifteen videos of seven frames
    learnt, asked = portions(type(data)(data.train, None), 0)
    assert sorted([*learnt.indices.tolist(), *asked.indices.tolist()]) == list(range(100))
    assert data.train.groups[asked.indices].unique().tolist() == [4, 9, 14]
    data.train.groups = torch.arange(100) // 50  # two
    assert [len(part.labels) for part in portions(type(data)(data.train, None), 0)] == [50, 50]
    data.train.labels = None
    assert labelled(resolve(tiny_recipe(), data, CPU), data, CPU) is None


def test_too_few_images_are_not_called_unlabelled(tmp_path):
    net, _ = trunk("resnet10", width=4, stem="small")
    about = {"arch": "resnet10", "width": 4, "stem": "small", "channels": 3, "size": 32}
    about |= {"mean": [0.5] * 3, "std": [0.25] * 3}
    (tmp_path / "b.safetensors").write_bytes(backbone_bytes(net, about))
    for name in "cats", "dogs":  # the usual first try: an image of each class
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "photos" / name / "1.png")
    with pytest.raises(ValueError, match="photos has too few labelled images to learn from some and test"):
        measure_knn(tmp_path / "b.safetensors", data=str(tmp_path / "photos"))
