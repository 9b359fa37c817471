"""Recipes from images: what is seen, what follows from it, and that the result is a recipe that runs."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from moco import recipe_file
from moco.cli import main
from moco.cli.plan import parse_budget
from moco.data.open import open_source
from moco.data.reading import Reading
from moco.data.source import ArraySource
from moco.images import Data
from moco.plan import Look, Plan, _batch_and_dictionary, _length, _measure, _network_and_views, look_at, plan
from moco.recipes import get

CPU = torch.device("cpu")


def noise(count=100, channels=3, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


def test_a_look_counts_what_is_there():
    look = look_at(ArraySource(noise(size=20)))
    assert look == Look(images=100, channels=3, short_side=20, least_side=20, grey=0.0)
    grey = noise(channels=1).expand(-1, 3, -1, -1).clone()
    grey[0] = noise(1, seed=1)[0]
    assert look_at(ArraySource(grey)).grey == 0.99
    assert look_at(ArraySource(noise(channels=1))).grey == 1.0


def test_a_look_passes_over_what_cannot_be_read(tmp_path):
    for i, image in enumerate(noise(6, size=24)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    for i in (1, 4):
        (tmp_path / f"{i}.png").write_bytes((tmp_path / f"{i}.png").read_bytes()[:60])
    look = look_at(open_source(str(tmp_path)))
    assert (look.images, look.short_side, look.grey) == (6, 24, 0.0)
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes((tmp_path / f"{i}.png").read_bytes()[:60])
    with pytest.raises((ValueError, FileNotFoundError, RuntimeError), match=r"read|decode"):
        look_at(open_source(str(tmp_path)))


def planned(images=50_000, side=32, grey=0.0, device=CPU, speed=500.0, seconds=3600.0):
    found = Plan("x", Look(images, 3, side, side, grey), get("cpu"))
    _network_and_views(found, device)
    _batch_and_dictionary(found)
    found.speed = speed
    _length(found, seconds, True)
    return found


@pytest.mark.parametrize("images", [64, 100, 1000, 5000, 50_000, 1_300_000])
@pytest.mark.parametrize("side", [28, 32, 64, 300])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_plan_is_a_recipe_whose_queue_fits(images, side, device):
    values = planned(images, side, device=torch.device(device)).recipe
    queue = values.dictionary.size
    assert queue <= images / 2
    assert values.dictionary.mask_own or queue <= images / 16
    assert values.batch <= images / 2
    assert 0.99 <= values.keys.momentum <= 0.999
    assert all(a.reason and a.source for a in planned(images, side).advice)


def test_no_reason_speaks_of_more_steps_than_there_are():
    def reason(seconds):
        return next(a.reason for a in planned(seconds=seconds).advice if a.name == "keys.momentum")

    assert reason(36_000.0).startswith("a key encoder of the last 1,000 of ")
    assert reason(60.0) == "the least that is advised; it suits longer runs than these 99 steps"


@pytest.mark.parametrize("seconds", [60.0, 1200.0, 36_000.0])
def test_the_schedule_ends_within_the_budget(seconds):
    found = planned(seconds=seconds)
    values = found.recipe
    steps = values.iterations or values.epochs * (50_000 // values.batch)
    assert steps * values.batch / 500 == pytest.approx(found.seconds)
    assert 0.6 * seconds <= found.seconds <= 0.85 * seconds
    with pytest.raises(ValueError, match="suffice for 1 steps"):
        planned(seconds=1)


def test_no_run_is_longer_than_is_known_to_help():
    assert planned(images=1000, seconds=1e7).recipe.epochs == 800


def test_grey_images_keep_their_brightness_changes_only():
    views = planned(grey=1.0).recipe.views
    assert (views.hue, views.saturation, views.grayscale_probability) == (0, 0, 0)
    assert views.brightness > 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("6h", 21600), ("30m", 1800), ("90s", 90), ("1h30m", 5400), ("1.5h", 5400), ("2min", 120)],
)
def test_budgets(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "6", "h", "-1h", "0s", "1.2.3h"])
def test_other_budgets_are_refused(text):
    with pytest.raises(ValueError, match="--budget must be a time such as 6h"):
        parse_budget(text)


def test_the_command_writes_a_recipe_that_trains(tmp_path, capsys, monkeypatch):
    np.savez(tmp_path / "x.npz", images=noise(128, size=8).permute(0, 2, 3, 1).numpy())
    monkeypatch.chdir(tmp_path)  # the plan works from elsewhere too
    words = ["plan", "x.npz", "--budget", "5m", "--out", str(tmp_path / "plan.toml")]
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--json"])
    shown = json.loads(capsys.readouterr().out)
    values, run = recipe_file.read(tmp_path / "plan.toml")
    assert run == {"data": str(tmp_path / "x.npz")}
    assert values.name == "planned"
    assert {"dictionary.size", "keys.momentum", "batch"} <= {a["name"] for a in shown["advice"]}
    assert "# dictionary.size = 64: at most half of the 128 images" in (tmp_path / "plan.toml").read_text()
    assert shown["speed"] > 0
    with pytest.raises(SystemExit, match="0"):
        main(["pretrain", "--from", str(tmp_path / "plan.toml"), "--epochs", "None", "--iterations", "3",
              "--out", str(tmp_path / "run"), "--json"])  # fmt: skip
    assert json.loads(capsys.readouterr().out)["steps"] == 3


def test_images_are_read_as_asked_for_and_the_recipe_says_so(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "links").mkdir()
    for i, image in enumerate(noise(64, size=8)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "real" / f"{i}.png")
        (tmp_path / "links" / f"{i}.png").symlink_to(tmp_path / "real" / f"{i}.png")
    words = ["plan", str(tmp_path / "links"), "--budget", "5m", "--out", str(tmp_path / "plan.toml")]
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--reading.follow-links", "--reading.channels", "1"])
    values, _ = recipe_file.read(tmp_path / "plan.toml")
    assert values.reading == Reading(channels=1, follow_links=True)


@pytest.mark.parametrize(
    ("count", "classes", "k"), [(240, 4, 20), (240, 120, 1), (1400, 2, 200), (240, 0, 200)]
)
def test_no_more_neighbours_vote_than_a_class_has(tmp_path, count, classes, k):
    labels = {"labels": np.arange(count) % classes} if classes else {}
    np.savez(tmp_path / "x.npz", images=noise(count, size=8).permute(0, 2, 3, 1).numpy(), **labels)
    found = plan(str(tmp_path / "x.npz"), CPU, budget=600)
    assert found.recipe.monitor.k == k
    assert ("monitor.k" in [advice.name for advice in found.advice]) == (k < 200)


def test_a_budget_of_nothing_is_not_the_default(tmp_path):
    np.save(tmp_path / "x.npy", noise(64, size=8).permute(0, 2, 3, 1).numpy())
    with pytest.raises(ValueError, match=r"0 s suffice for 0 steps .* give a larger --budget"):
        plan(str(tmp_path / "x.npy"), CPU, budget=0)


def test_few_images_have_a_speed_too(tmp_path):
    np.save(tmp_path / "x.npy", noise(70, size=8).permute(0, 2, 3, 1).numpy())
    found = plan(str(tmp_path / "x.npy"), CPU, budget=300.0)
    assert found.speed > 0
    assert "2 steps per epoch of 70 images" in [a.reason for a in found.advice]


def test_a_network_for_gpus_is_timed_too():
    """Its recipe's learning rate ends at zero within the few steps of a timing."""
    found = Plan("x", Look(4096, 3, 8, 8, 0.0), get("cpu"))
    _network_and_views(found, torch.device("cuda"))
    _batch_and_dictionary(found)
    small = dataclasses.replace(found.recipe.encoder, arch="resnet10", width=8)
    found.recipe = dataclasses.replace(found.recipe, encoder=small)
    _measure(found, Data(ArraySource(noise(4096, size=8)), None), CPU, 1)
    assert found.speed > 0


def test_too_few_images_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", noise(20).permute(0, 2, 3, 1).numpy())
    with pytest.raises(ValueError, match="has 20 images; a plan takes at least 64"):
        plan(str(tmp_path / "x.npy"), CPU)
