"""Linear classification: the paper's protocol, the grid in one pass, and logistic regression."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moco import chance
from moco.build import build_encoder, resolve
from moco.evaluate.linear import LinearProtocol, linear_grid, linear_protocol, top_accuracy, train_linear
from moco.evaluate.logistic import fit_predict, logistic_regression, scores, standardise
from moco.images import portions
from tiny import CPU, tiny_data, tiny_recipe

SHORT = LinearProtocol(epochs=5, milestones=(3, 4), batch=32)


def blobs(count=200, dim=8, classes=3, spread=0.3, seed=0, dtype=torch.float64):
    """Features around one centre per class."""
    generator = torch.Generator().manual_seed(seed)
    centres = F.normalize(
        torch.randn(classes, dim, generator=torch.Generator().manual_seed(9), dtype=dtype), dim=1
    )
    labels = torch.randint(classes, (count,), generator=generator)
    return centres[labels] + spread * torch.randn(count, dim, generator=generator, dtype=dtype), labels


def one_setting(features, labels, classes, lr, decay, protocol):
    """The slow, obvious way: a module, an optimiser and one setting."""
    fc = nn.Linear(features.shape[1], classes, dtype=features.dtype)
    start = torch.randn(classes, features.shape[1], generator=chance.generator(0, "linear weights"))
    with torch.no_grad():
        fc.weight.copy_(start * 0.01)
        fc.bias.zero_()
    optimizer = torch.optim.SGD(fc.parameters(), lr, momentum=0.9, weight_decay=decay)
    for epoch in range(protocol.epochs):
        for group in optimizer.param_groups:
            group["lr"] = lr * protocol.batch / 256 * 0.1 ** sum(epoch >= m for m in protocol.milestones)
        order = torch.randperm(len(labels), generator=chance.generator(0, "linear order", epoch))
        for index in order.split(protocol.batch):
            optimizer.zero_grad()
            F.cross_entropy(fc(features[index]), labels[index]).backward()
            optimizer.step()
    return fc


def test_the_defaults_are_the_papers():
    paper = LinearProtocol()
    assert (paper.lr, paper.momentum, paper.weight_decay, paper.epochs, paper.batch) == (30, 0.9, 0, 100, 256)
    rates = [paper.rate(epoch) for epoch in (0, 59, 60, 79, 80, 99)]
    assert rates == pytest.approx([30, 30, 3, 3, 0.3, 0.3])


def test_a_grid_in_one_pass_is_its_settings_one_by_one():
    features, labels = blobs()
    settings = [(0.1, 0.0), (1.0, 1e-3), (5.0, 0.0)]
    found = train_linear(
        features[None], labels, 3,
        lrs=[lr for lr, _ in settings], weight_decays=[decay for _, decay in settings], protocol=SHORT,
    )  # fmt: skip
    for number, (lr, decay) in enumerate(settings):
        alone = one_setting(features, labels, 3, lr, decay, SHORT)
        torch.testing.assert_close(found.weight[number], alone.weight.detach(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.bias[number], alone.bias.detach(), rtol=1e-10, atol=1e-12)


def test_a_setting_that_diverges_leaves_the_others_alone():
    features, labels = blobs(dtype=torch.float32)
    mixed = train_linear(
        1e30 * features[None], labels, 3, lrs=[1e30, 1e-30], weight_decays=[0, 0], protocol=SHORT
    )
    alone = train_linear(1e30 * features[None], labels, 3, lrs=[1e-30], weight_decays=[0], protocol=SHORT)
    assert not mixed.weight[0].isfinite().all()
    assert torch.equal(mixed.weight[1], alone.weight[0])


def test_epochs_take_the_cached_views_in_turn():
    features, labels = blobs()
    other = features + 1
    both = train_linear(torch.stack([features, other]), labels, 3, lrs=[1.0], weight_decays=[0],
                        protocol=LinearProtocol(epochs=1))  # fmt: skip
    first = train_linear(features[None], labels, 3, lrs=[1.0], weight_decays=[0],
                         protocol=LinearProtocol(epochs=1))  # fmt: skip
    assert torch.equal(both.weight, first.weight)
    both = train_linear(torch.stack([features, other]), labels, 3, lrs=[1.0], weight_decays=[0],
                        protocol=LinearProtocol(epochs=2))  # fmt: skip
    twice = train_linear(features[None], labels, 3, lrs=[1.0], weight_decays=[0],
                         protocol=LinearProtocol(epochs=2))  # fmt: skip
    assert not torch.equal(both.weight, twice.weight)


def test_separable_features_give_all_and_shuffled_labels_give_chance():
    features, labels = blobs(400, spread=0.01)
    test, answers = blobs(2000, spread=0.01, seed=1)
    protocol = LinearProtocol(epochs=20, milestones=(12, 16))
    assert linear_grid(features[None], labels, test, answers, protocol=protocol).top1 == 100
    assert (fit_predict(features[None], labels[None], 3, test)[0] == answers).all()
    generator = torch.Generator().manual_seed(5)
    wrong = torch.randint(3, labels.shape, generator=generator)
    noise = torch.randn(2000, 8, generator=generator, dtype=torch.float64)
    truth = torch.randint(3, (2000,), generator=generator)
    bound = 4 * (1 / 3 * 2 / 3 / 2000) ** 0.5 * 100  # four standard deviations of a binomial share
    assert abs(linear_grid(features[None], wrong, noise, truth, protocol=protocol).top1 - 100 / 3) < bound
    guessed = (fit_predict(features[None], wrong[None], 3, noise)[0] == truth).double().mean() * 100
    assert abs(guessed - 100 / 3) < bound


def test_the_grid_chooses_without_the_test_images():
    features, labels = blobs()
    test, answers = blobs(100, seed=1)
    found = linear_grid(features[None], labels, test, answers, protocol=SHORT)
    other = linear_grid(features[None], labels, -test, answers, protocol=SHORT)
    assert (found.lr, found.weight_decay, found.settings) == (other.lr, other.weight_decay, other.settings)
    assert len(found.settings) >= 24


def videos(count, frames, wrong=0.0):
    """All but equal frames of videos whose class shows in one of 64 features; some videos' is wrong."""
    generator = torch.Generator().manual_seed(count)
    labels = torch.arange(count) % 2
    features = torch.randn(count, 64, generator=generator)
    features[:, 0] += 2.0 * (2 * labels - 1)
    flipped = torch.rand(count, generator=generator) < wrong
    given = torch.where(flipped, 1 - labels, labels)
    frame = features.repeat_interleave(frames, 0)
    frame = frame + 0.01 * torch.randn(frame.shape, generator=generator)
    return frame, given.repeat_interleave(frames), torch.arange(count).repeat_interleave(frames)


def test_settings_are_chosen_on_groups_that_were_not_trained_on():
    features, labels, groups = videos(60, 5, wrong=0.15)
    queries, answers, _ = videos(500, 1)
    leaking = linear_grid(features[None], labels, queries, answers, protocol=SHORT)
    honest = linear_grid(features[None], labels, queries, answers, groups=groups, protocol=SHORT)
    assert max(right for *_, right in leaking.settings) == 100
    assert max(right for *_, right in honest.settings) < 100
    one = linear_grid(features[None], labels, queries, answers, groups=0 * groups, protocol=SHORT)
    assert one == leaking

    def predicted(groups, *penalties):
        return fit_predict(features[None], labels[None], 2, queries, groups=groups, penalties=penalties)

    assert torch.equal(predicted(None, 3.0, 1e-4), predicted(None, 1e-4))
    assert torch.equal(predicted(groups[None], 3.0, 1e-4), predicted(None, 3.0))


def test_logistic_regression_is_scikit_learns():
    sklearn = pytest.importorskip("sklearn.linear_model")
    features, labels = blobs(150)
    for penalty in 1e-1, 1e-2:
        found = logistic_regression(
            features[None], labels[None], 3, torch.tensor([[penalty]], dtype=torch.float64), iterations=2000
        )[0, 0]
        known = sklearn.LogisticRegression(C=1 / (penalty * 150), tol=1e-12, max_iter=10_000)
        known.fit(features.numpy(), labels.numpy())
        torch.testing.assert_close(found[:, :-1], torch.from_numpy(known.coef_), rtol=0, atol=2e-4)


def test_stacked_problems_are_the_single_ones_and_shares_of_zero_leave_images_out():
    (a, la), (b, lb) = blobs(60, seed=1), blobs(60, seed=2)
    penalty = torch.tensor([[1e-2], [1e-1]], dtype=torch.float64)
    both = logistic_regression(torch.stack([a, b]), torch.stack([la, lb]), 3, penalty, iterations=2000)
    for number, (features, labels) in enumerate([(a, la), (b, lb)]):
        alone = logistic_regression(features[None], labels[None], 3, penalty[number : number + 1],
                                    iterations=2000)  # fmt: skip
        torch.testing.assert_close(both[number], alone[0], rtol=0, atol=1e-4)
    shares = (torch.arange(60) < 40).double()[None, None]
    part = logistic_regression(a[None], la[None], 3, penalty[:1], shares=shares, iterations=2000)
    short = logistic_regression(a[None, :40], la[None, :40], 3, penalty[:1], iterations=2000)
    torch.testing.assert_close(part, short, rtol=0, atol=1e-4)


def test_standardised_features_are_centred_and_of_unit_scale():
    features, _ = blobs(500)
    standard, same = standardise(5 * features + 7, 5 * features + 7)
    assert torch.equal(standard, same)
    assert standard.mean(0).abs().max() < 1e-12
    assert standard.square().mean().item() == pytest.approx(1)


def test_scores_are_affine():
    weights = torch.tensor([[[[2.0, 3.0, 1.0]]]])
    assert scores(weights, torch.tensor([[[1.0, 1.0]]])).item() == 6


def test_top5_counts_the_first_five():
    logits = torch.arange(6.0).repeat(6, 1)
    assert top_accuracy(logits, torch.arange(6)) == pytest.approx((100 / 6, 500 / 6), abs=1e-3)


def test_the_papers_protocol_learns_and_moves_no_bit_of_the_trunk():
    values = resolve(tiny_recipe(), data := tiny_data(), CPU)
    encoder = build_encoder(values, 3)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    train, test = portions(data, 0)
    protocol = LinearProtocol(lr=1.0, epochs=4, milestones=(3,), batch=50)
    crops = train.crops(values, CPU, batch=50)
    rows = list(linear_protocol(encoder, crops, test.plain(values, CPU), 10, protocol=protocol))
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["top1"] <= rows[-1]["top5"]
    after = encoder.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_trunk_that_moves_is_noticed():
    values = resolve(tiny_recipe(), data := tiny_data(), CPU)
    encoder = build_encoder(values, 3)
    train, test = portions(data, 0)

    def batches(epoch):
        encoder.trunk.train()  # what a careless probe does: the statistics move
        yield from train.crops(values, CPU, batch=48, drop_last=True)(epoch)

    protocol = LinearProtocol(epochs=1, batch=48)
    with pytest.raises(AssertionError, match="the probe changed"):
        list(linear_protocol(encoder, batches, test.plain(values, CPU), 10, protocol=protocol))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, y: train_linear(f[None] * torch.nan, y, 3, lrs=[1], weight_decays=[0]), "not finite"),
        (lambda f, y: logistic_regression(f[None] / 0, y[None], 3, torch.ones(1, 1)), "not finite"),
        (lambda f, y: logistic_regression(f[None], y[None], 3, torch.zeros(1, 1)), "above 0, got 0"),
        (lambda f, y: fit_predict(f[None], y[None], 3, f * torch.nan), "not finite"),
        (lambda f, y: linear_grid(f[None], y, f * torch.nan, y), "not finite"),
        (lambda f, y: linear_grid(f[None, :10], y[:10], f, y), "at least 20 labelled images, got 10"),
        (lambda f, y: LinearProtocol(lr=0), "lr must be above 0"),  # noqa: ARG005
        (lambda f, y: LinearProtocol(epochs=0), "epochs must be at least 1"),  # noqa: ARG005
    ],
)
def test_impossible_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(*blobs())
