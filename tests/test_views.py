"""Views against torchvision: the same pixels from the same parameters, the same distributions."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from moco.data import colour
from moco.data.augmentation import SMALL, V1, V2, V3, Augmentation
from moco.data.crop import ATTEMPTS, crop_boxes, resize
from moco.data.views import Views


def images(count=32, height=40, width=36, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return (0.8 * smooth + 0.2 * torch.rand(smooth.shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("size", [16, 32, 48])
@pytest.mark.parametrize("shape", [(32, 32), (40, 36), (20, 61)])
def test_crop_resize_and_flip_are_torchvisions(shape, size):
    views = Views(dataclasses.replace(SMALL, size=size))
    x = images(24, *shape)
    parameters = views.draw(0, 0, np.arange(24), 0)
    boxes = views.boxes(parameters, torch.full((24,), shape[0]), torch.full((24,), shape[1]))
    for image, box, flip, ours in zip(x, boxes, parameters.flip, views.geometry(x, parameters), strict=True):
        expected = reference.resized_crop(image, *box.tolist(), [size, size], antialias=True)
        torch.testing.assert_close(ours, expected.flip(-1) if flip else expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("operation", colour.OPERATIONS)
def test_each_colour_operation_is_torchvisions(operation):
    x = images()
    factors = torch.linspace(-0.5, 0.5, 32) if operation == "hue" else torch.linspace(0, 2, 32)
    ours = getattr(colour, operation)(x.clone(), factors)
    adjust = getattr(reference, f"adjust_{operation}")
    for image, factor, mine in zip(x, factors.tolist(), ours, strict=True):
        torch.testing.assert_close(mine, adjust(image, factor), atol=3e-6, rtol=0)


def test_grey_and_saturated_pixels_have_a_hue_too():
    x = torch.stack([torch.full((3, 4, 4), v) for v in (0.0, 0.3, 1.0)])
    assert torch.equal(colour.hue(x.clone(), torch.full((3,), 0.2)), x)
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(colour.hue(red, torch.tensor([1 / 3])).flatten(), torch.tensor([0.0, 1, 0]))


def test_jitter_takes_each_image_in_its_own_order():
    x = images()
    views = Views(V2)
    p = views.draw(0, 0, np.arange(32), 1)
    ours = x.clone()
    colour.jitter(ours, p.factors, p.order, p.jitter)
    for row in range(32):
        expected = x[row]
        if p.jitter[row]:
            for number in p.order[row].tolist():
                adjust = getattr(reference, f"adjust_{colour.OPERATIONS[number]}")
                expected = adjust(expected, p.factors[row, number].item())
        torch.testing.assert_close(ours[row], expected, atol=1e-5, rtol=0)
    assert 0 < p.jitter.sum() < 32


def test_hue_of_any_turn_is_torchvisions_for_every_kind_of_pixel():
    """Grey, two equal channels, full saturation; turns beyond a sixth of the circle take the longer way."""
    levels = torch.tensor([0.0, 0.25, 0.25, 0.6, 1.0])
    x = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 5, 25)
    turns = [-0.5, -0.4, -1 / 3, -1 / 6, -0.1, 0.0, 0.1, 1 / 6, 0.2, 1 / 3, 0.5]
    expected = torch.cat([reference.adjust_hue(x, turn) for turn in turns])
    ours = colour.hue(x.repeat(len(turns), 1, 1, 1), torch.tensor(turns))
    torch.testing.assert_close(ours, expected, atol=3e-6, rtol=0)
    for row, turn in enumerate(turns):
        torch.testing.assert_close(
            colour.hue(x.clone(), torch.tensor([turn]))[0], expected[row], atol=3e-6, rtol=0
        )


@pytest.mark.parametrize("settings", [V1, V2, V3])
@pytest.mark.parametrize(("channels", "size", "opencv"), [(3, 40, False), (3, 45, True)])
def test_images_changed_one_at_a_time_are_those_changed_together(
    settings, channels, size, opencv, monkeypatch
):
    if opencv:
        pytest.importorskip("cv2")
    mean = (0.4,) * channels
    views = Views(dataclasses.replace(settings, size=size, mean=mean, std=mean, blur_probability=0.5))
    x = images(32, size, size, channels)
    p = views.draw(3, 1, np.arange(32), 1)
    together = views.photometry(x.clone(), p)
    monkeypatch.setattr(colour, "_LARGE", 1)
    monkeypatch.setattr(colour, "opencv", (lambda: "some") if opencv else (lambda: None))
    assert colour.alone(x)
    assert colour.by_opencv(x) == (opencv and channels == 3)
    one_by_one = views.photometry(x.clone(), p)
    torch.testing.assert_close(one_by_one, together, atol=3e-5, rtol=0)
    assert one_by_one.is_contiguous(memory_format=torch.channels_last)


def test_an_opencv_that_cannot_be_imported_is_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)  # as where a library of the system is missing
    monkeypatch.setattr(colour, "opencv", colour.opencv.__wrapped__)
    assert colour.opencv() is None
    assert not colour.by_opencv(torch.zeros(1, 3, 224, 224))


def test_opencv_changes_large_rgb_images_on_cpus_only(monkeypatch):
    monkeypatch.setattr(colour, "opencv", lambda: "5.0")
    assert colour.opencv_for("cpu", 3, 3 * 224**2) == "5.0"
    for other in ("cuda", 3, 3 * 224**2), ("cpu", 4, 4 * 224**2), ("cpu", 3, 3 * 32**2):
        assert colour.opencv_for(*other) is None


@pytest.mark.parametrize("operation", colour.OPERATIONS)
def test_each_colour_operation_by_opencv_is_torchvisions(operation):
    pytest.importorskip("cv2")
    from moco.data.opencv import Canvas

    factors = torch.linspace(-0.5, 0.5, 9) if operation == "hue" else torch.linspace(0, 2, 9)
    steps = torch.linspace(0, 1, 11)
    every = torch.cartesian_prod(steps, steps, steps).T.reshape(3, 11, 121)  # greys, edges and corners too
    for factor in factors.tolist():
        image = every.permute(1, 2, 0).numpy().copy()
        canvas = Canvas(image, np.empty_like(image))
        getattr(canvas, operation)(factor)
        expected = getattr(reference, f"adjust_{operation}")(every, factor)
        torch.testing.assert_close(
            torch.from_numpy(canvas.image).permute(2, 0, 1), expected, atol=3e-6, rtol=0
        )


@pytest.mark.parametrize("shape", [(32, 32), (50, 33), (7, 100), (1, 1)])
def test_blur_by_blocks_is_blur_by_whole_matrices(shape, monkeypatch):
    x = torch.rand(6, 3, *shape)
    sigma = torch.tensor([0.1, 0.3, 0.9, 1.5, 2.0, 4.0])
    chosen = torch.ones(6, dtype=torch.bool)
    ours, expected = x.clone(), x.clone()
    for row in range(6):  # each with its own reach
        colour.blur(expected[row : row + 1], sigma[row : row + 1], chosen[:1])
    monkeypatch.setattr(colour, "_LARGE", 1)
    colour.blur(ours, sigma, chosen)
    torch.testing.assert_close(ours, expected, atol=3e-6, rtol=0)


@pytest.mark.parametrize("inside", [False, True])
def test_eight_bit_images_are_resized_as_torchvision_does(inside):
    """Decoded images have their colours side by side in memory; parts of them are not contiguous."""
    x = torch.randint(0, 256, (60, 70, 3), dtype=torch.uint8).permute(2, 0, 1)
    box = (3, 5, 41, 57)
    part = x[:, 3:44, 5:62] if inside else x[:, 3:44, 5:62].contiguous()
    expected = reference.resized_crop(x, *box, [32, 24], antialias=True)
    difference = (resize(part, 32, 24).int() - expected.int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() < 0.01
    assert torch.equal(resize(part, 41, 57), part)


def test_blur_is_gaussian():
    x = images(6, 48, 48)
    sigma = torch.tensor([0.1, 0.5, 1.0, 1.5, 2.0, 1.0])
    chosen = torch.tensor([True] * 5 + [False])
    ours = x.clone()
    colour.blur(ours, sigma, chosen)
    inner = slice(12, -12)
    for row in range(5):
        expected = reference.gaussian_blur(x[row], [23, 23], [sigma[row].item()] * 2)
        difference = (ours[row] - expected)[:, inner, inner].abs().max()
        assert difference < 1e-3  # the kernel is cut at four deviations, there at 11 pixels
    assert torch.equal(ours[5], x[5])
    flat = torch.full((1, 3, 9, 9), 0.7)
    colour.blur(flat, torch.tensor([2.0]), torch.tensor([True]))
    torch.testing.assert_close(flat, torch.full((1, 3, 9, 9), 0.7))


def test_whole_view_is_made_of_its_parts_in_the_order_of_the_paper():
    x = images(64, 32, 32)
    for settings in V1, V2, V3:
        settings = dataclasses.replace(settings, size=32)
        views = Views(settings)
        p = views.draw(1, 2, np.arange(64), 1)
        ours = views.photometry(x.clone(), p)
        expected = []
        for row in range(64):
            y = x[row]
            if settings.grayscale_first and p.grayscale[row]:
                y = reference.rgb_to_grayscale(y, 3)
            if p.jitter[row]:
                for number in p.order[row].tolist():
                    adjust = getattr(reference, f"adjust_{colour.OPERATIONS[number]}")
                    y = adjust(y, p.factors[row, number].item())
            if not settings.grayscale_first and p.grayscale[row]:
                y = reference.rgb_to_grayscale(y, 3)
            y = y[None].clone()
            colour.blur(y, p.sigma[row : row + 1], p.blur[row : row + 1])
            if p.solarize[row]:
                y = reference.solarize(y, 0.5)
            expected.append(reference.normalize(y[0], settings.mean, settings.std))
        torch.testing.assert_close(ours, torch.stack(expected), atol=1e-4, rtol=0)
        assert ours.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.08, 1.0)])
@pytest.mark.parametrize("shape", [(32, 32), (120, 300)])
def test_boxes_are_distributed_as_torchvisions(scale, shape):
    count = 20_000
    views = Views(dataclasses.replace(V1, scale=scale))
    p = views.draw(0, 0, np.arange(count), 0)
    ours = views.boxes(p, torch.full((count,), shape[0]), torch.full((count,), shape[1])).numpy()
    torch.manual_seed(0)
    blank = torch.zeros(3, *shape)
    theirs = np.array([RandomResizedCrop.get_params(blank, scale, (3 / 4, 4 / 3)) for _ in range(count)])
    for name, mine, other in [
        ("area", ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]),
        ("ratio", ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2]),
        ("top", ours[:, 0], theirs[:, 0]),
        ("left", ours[:, 1], theirs[:, 1]),
    ]:
        assert stats.ks_2samp(mine, other, method="asymp").pvalue > 1e-3, name
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= shape[0]).all()
    assert (ours[:, 1] + ours[:, 3] <= shape[1]).all()


def test_box_that_never_fits_is_the_largest_central_one():
    """An image so narrow that no ratio fits: torchvision falls back to the centre."""
    draws = torch.full((1, 4 * ATTEMPTS), 0.99, dtype=torch.float64)
    box = crop_boxes(draws, torch.tensor([10]), torch.tensor([1000]), (0.99, 1.0), (3 / 4, 4 / 3))
    assert box.tolist() == [[0, 493, 10, 13]]
    tall = crop_boxes(draws, torch.tensor([1000]), torch.tensor([10]), (0.99, 1.0), (3 / 4, 4 / 3))
    assert tall.tolist() == [[493, 0, 13, 10]]


def test_rates_and_ranges_are_as_set():
    count = 20_000
    p = Views(V2).draw(0, 0, np.arange(count), 0)
    for draw, rate in [(p.flip, 0.5), (p.jitter, 0.8), (p.grayscale, 0.2), (p.blur, 0.5)]:
        assert stats.binomtest(int(draw.sum()), count, rate).pvalue > 1e-3
    torch.manual_seed(0)
    jitter = ColorJitter(0.4, 0.4, 0.4, 0.1)
    drawn = [
        ColorJitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        for _ in range(4000)
    ]
    for column in range(4):
        theirs = [d[column + 1] for d in drawn]
        assert stats.ks_2samp(p.factors[:4000, column].numpy(), theirs).pvalue > 1e-3
    assert stats.kstest(p.sigma.numpy(), stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3
    orders, counts = p.order.unique(dim=0, return_counts=True)
    assert len(orders) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert (Views(V1).draw(0, 0, np.arange(99), 0).jitter).all()
    assert not Views(V1).draw(0, 0, np.arange(99), 0).blur.any()


def test_v3s_views_differ_in_blur_and_solarizing():
    count = 20_000
    first, second = (Views(V3).draw(0, 0, np.arange(count), view) for view in (0, 1))
    assert first.blur.all()
    assert not first.solarize.any()
    for draw, rate in (second.blur, 0.1), (second.solarize, 0.2), (first.jitter, 0.8), (second.jitter, 0.8):
        assert stats.binomtest(int(draw.sum()), count, rate).pvalue > 1e-3
    both = second.solarize & second.jitter
    assert stats.binomtest(int(both.sum()), count, 0.16).pvalue > 1e-3


def test_solarizing_is_torchvisions():
    x = images(4, 9, 9)
    ours, chosen = x.clone(), torch.tensor([True, False, True, True])
    colour.solarize(ours, chosen)
    torch.testing.assert_close(ours[chosen], reference.solarize(x[chosen], 0.5), rtol=0, atol=0)
    assert torch.equal(ours[1], x[1])
    bytes_ = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)  # as the released code does it, with PIL
    levels = bytes_ / 255
    colour.solarize(levels, torch.tensor([True]))
    assert torch.equal((255 * levels).round().to(torch.uint8), reference.solarize(bytes_, 128))


def test_a_view_does_not_depend_on_its_batch():
    views, x = Views(SMALL), images(8, 32, 32)
    whole = views.draw(5, 3, np.arange(8), 0)
    alone = views.draw(5, 3, np.array([6]), 0)
    a = views.photometry(views.geometry(x, whole), whole)[6]
    b = views.photometry(views.geometry(x[6:7], alone), alone)[0]
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_the_two_views_and_the_epochs_differ():
    views = Views(SMALL)
    draws = [views.draw(0, e, np.arange(50), v).crop_draws for e, v in [(0, 0), (0, 1), (1, 0)]]
    assert not torch.isclose(draws[0], draws[1]).any(1).all()
    assert not torch.isclose(draws[0], draws[2]).any(1).all()


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_of_other_channel_counts_have_no_hue(channels):
    mean = (0.5,) * channels
    views = Views(dataclasses.replace(SMALL, mean=mean, std=mean, blur_probability=0.5))
    x = images(16, 32, 32, channels)
    p = views.draw(0, 0, np.arange(16), 0)
    result = views.photometry(views.geometry(x, p), p)
    assert result.shape == (16, channels, 32, 32)
    assert result.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "views.size must be at least 1 pixel, got 0"),
        ({"scale": (0.0, 1.0)}, "views.scale must be two shares of the area"),
        ({"scale": (0.5, 0.2)}, "views.scale must be"),
        ({"ratio": (2.0, 1.0)}, "views.ratio must be"),
        ({"hue": 0.7}, r"views.hue must be in \[0, 0.5\]"),
        ({"brightness": -1.0}, "views.brightness must be in"),
        ({"flip_probability": 1.2}, "views.flip_probability must be in"),
        ({"blur_sigma": (0.0, 1.0)}, "views.blur_sigma must be"),
        ({"second_blur_probability": -0.1}, "views.second_blur_probability must be in"),
        ({"second_solarize_probability": 1.1}, "views.second_solarize_probability must be in"),
        ({"mean": None}, "both be given or both be measured"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


def test_unmeasured_statistics_are_refused():
    with pytest.raises(ValueError, match="views need a mean"):
        Views(Augmentation(mean=None, std=None))
