"""What is asked of images before anything is trained or measured: form, range, classes, names."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import moco
from moco import recipe_file
from moco.cli import main
from moco.data.loader import _rows
from moco.data.source import ArraySource
from moco.data.statistics import fitted
from moco.images import open_data, pairs, portions
from moco.plan import Look, Plan, look_at
from moco.recipe import MomentumQueue
from moco.run_folder import read_run
from tiny import CPU, tiny_recipe


def images(count=20, size=8, dtype=np.uint8, channels=3):
    rng = np.random.default_rng(0)
    made = rng.random((count, size, size, channels))
    return (made * 255).astype(dtype) if dtype != np.float32 else made.astype(dtype)


def test_names_that_are_no_utf_8_are_in_recipe_and_report(tmp_path):
    data = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    data.mkdir()
    for i, image in enumerate(images(40, 16)):
        Image.fromarray(image).save(data / os.fsdecode(b"\xe9%d.png" % i))
    values = tiny_recipe(epochs=1, dictionary=MomentumQueue(size=20))
    moco.pretrain(values, data=str(data), out=tmp_path / "run")
    assert read_run(tmp_path / "run")[1]["data"] == str(data)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert r"caf\udce9" in page
    assert r"\udce91.png" in page
    Plan(str(data), Look(40, 3, 16, 16, 0.0), values).write(tmp_path / "plan.toml")
    assert recipe_file.read(tmp_path / "plan.toml") == (values, {"data": str(data)})


def test_every_fifth_of_classes_in_turn_leaves_every_class_to_learn_from(tmp_path):
    np.savez(tmp_path / "turn.npz", images=images(50), labels=np.arange(50) % 5)
    bank, queries = portions(open_data(str(tmp_path / "turn.npz")), 0)
    assert set(bank.labels.tolist()) == set(queries.labels.tolist()) == set(range(5))
    assert (len(bank.labels), len(queries.labels)) == (40, 10)


def test_one_test_image_has_no_spread_so_training_images_are_looked_at(tmp_path):
    np.savez(tmp_path / "one.npz", images=images(20, 16), test_images=images(1, 16))
    values = tiny_recipe()
    data = open_data(str(tmp_path / "one.npz"))
    values = tiny_recipe(views=fitted(values.views, data.train))
    assert sum(len(first) for first, _ in pairs(values, data, CPU, count=20)()) == 20


def test_test_images_that_cannot_be_read_are_refused_before_training(tmp_path):
    for place in "train/a", "train/b", "test/a", "test/b":
        (tmp_path / place).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(images(1, 16)[0]).save(tmp_path / place / f"{i}.png")
    (tmp_path / "test/a/0.png").write_bytes(b"no image")
    assert len(open_data(str(tmp_path)).test) == 6
    for path in tmp_path.glob("test/*/*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"no test image that was looked at can be read, such as .*0\.png"):
        open_data(str(tmp_path))


def test_test_images_of_another_form_are_refused(tmp_path):
    for test in images(4, dtype=np.float32), images(4, channels=1):
        np.savez(tmp_path / "mixed.npz", images=images(), test_images=test)
        with pytest.raises(ValueError, match="the training images have"):
            open_data(str(tmp_path / "mixed.npz"))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_the_range_of_8_bit_images_is_refused_for_others(dtype):
    values = fitted(tiny_recipe().views, ArraySource(torch.from_numpy(images()).permute(0, 3, 1, 2)))
    assert values.range == (0, 255)
    source = ArraySource(torch.from_numpy(images(dtype=dtype)).permute(0, 3, 1, 2))
    with pytest.raises(ValueError, match=r"views.range is 0 to 255, but .* pixels of another range"):
        fitted(values, source)


def test_floating_point_colours_are_colours():
    source = ArraySource(torch.from_numpy(images(dtype=np.float32)).permute(0, 3, 1, 2))
    assert look_at(source).grey == 0
    grey = ArraySource(source.pixels[:, :1].expand(-1, 3, -1, -1).contiguous())
    assert look_at(grey).grey == 1


def test_rows_of_16_bit_images_are_those_that_were_asked_for():
    pixels = torch.from_numpy(images(dtype=np.uint16) * 257)
    index = torch.tensor([3, 0, 3])
    assert torch.equal(_rows(pixels, index).to(torch.int64), pixels.to(torch.int64)[index])


def test_a_folder_where_a_file_is_wanted_ends_in_a_sentence(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", images=images())
    words = ["--data", str(tmp_path / "a.npz"), "--out", str(tmp_path / "run"), "--quarantine", str(tmp_path)]
    with pytest.raises(SystemExit):
        main(["pretrain", *words])
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert str(tmp_path) in said
