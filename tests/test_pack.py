"""Packing: shards that are whole or not there, smaller images where asked, and the command."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from moco.cli import main
from moco.data.open import open_source
from moco.data.pack import Member, pack, smaller, verify
from moco.data.shards import ShardSource
from shard_images import copy, image, number_of, packed  # noqa: F401


def test_verification_finds_a_flipped_bit(packed, tmp_path):  # noqa: F811
    assert verify(packed) == []
    folder = copy(packed, tmp_path / "flipped")
    content = bytearray((folder / "shard-000003.tar").read_bytes())
    content[5000] ^= 1
    (folder / "shard-000003.tar").write_bytes(content)
    (damage,) = verify(folder)
    assert damage == "shard-000003.tar: its checksum does not match its content"


def test_a_folder_that_is_being_packed_is_left_alone(tmp_path):
    """As when a connection was lost, the first call lives on, and the command is given again."""
    refused = []

    def member(i):
        if i == 5:
            with pytest.raises(FileExistsError, match=r"another process is packing into .*out"):
                pack(member, 9, tmp_path / "out", shard_images=3)
            refused.append(i)
        return Member(".png", image(i))

    assert pack(member, 9, tmp_path / "out", shard_images=3).images == 9
    assert refused == [5]
    assert len(ShardSource(tmp_path / "out")) == 9


def test_nothing_is_overwritten_but_an_unfinished_packing_starts_anew(packed, tmp_path):  # noqa: F811
    def member(i):
        if i == 5 and stop:
            raise KeyboardInterrupt
        return Member(".png", image(i))

    with pytest.raises(FileExistsError, match="is not empty"):
        pack(member, 9, packed)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        pack(member, 9, tmp_path / "out", shard_images=3)
    with pytest.raises(ValueError, match=r"the packing of .*out did not finish"):
        ShardSource(tmp_path / "out")
    stop = False
    pack(member, 9, tmp_path / "out", shard_images=3)
    source = ShardSource(tmp_path / "out")
    assert sorted(number_of(source, i) for i in range(9)) == list(range(9))
    assert source.labels is None
    with pytest.raises(ValueError, match="shard_images must be at least 1 image, got 0"):
        pack(member, 9, tmp_path / "other", shard_images=0)


def test_resizing_keeps_small_files_and_shrinks_large_ones():
    small = image(3)
    assert smaller(small, ".png", 20, "x") == (small, ".png", False)
    content, ending, large = smaller(image(3, size=60, kind="JPEG"), ".jpg", 30, "x")
    assert (ending, Image.open(io.BytesIO(content)).size, large) == (".jpg", (32, 30), False)
    with pytest.raises(RuntimeError, match=r"broken\.png"):
        smaller(b"no image", ".png", 30, "broken.png")


def test_resizing_keeps_grey_and_leaves_what_it_would_spoil(tmp_path, capsys):
    ramp = np.linspace(0, 4095, 64 * 64).reshape(64, 64)
    grey = Image.fromarray((ramp // 16).astype(np.uint8))
    red = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    palette = Image.new("P", (64, 64))
    palette.putpalette([0, 255, 0] * 256)
    spoilt = {
        "deep.png": Image.fromarray(ramp.astype(np.uint16)),
        "float.tiff": Image.fromarray((ramp / 4095).astype(np.float32)),
        "clear.png": red,
        "hidden.png": red.convert("RGB"),
        "palette.png": palette,
        "ink.jpg": red.convert("CMYK"),
    }
    images = tmp_path / "images"
    images.mkdir()
    for name, picture in (spoilt | {"grey.png": grey, "small.png": grey.resize((32, 32))}).items():
        picture.save(images / name, **({"transparency": (255, 0, 0)} if name == "hidden.png" else {}))
    for name in spoilt:
        content, ending = (images / name).read_bytes(), (images / name).suffix
        assert smaller(content, ending, 32, name) == (content, ending, True)
        assert smaller(content, ending, 64, name) == (content, ending, False)
    content, *rest = smaller((images / "grey.png").read_bytes(), ".png", 32, "x")
    resized = Image.open(io.BytesIO(content))
    assert (resized.mode, resized.size, rest) == ("L", (32, 32), [".png", False])
    words = ["pack", str(images), "--short-side", "32", "--out"]
    with pytest.raises(SystemExit) as ended:
        main([*words, str(tmp_path / "out")])
    shown = capsys.readouterr()
    assert ended.value.code == 0
    assert "6 larger images were left as they are" in shown.err
    assert "8 images in 1 shard," in shown.out
    with pytest.raises(SystemExit):
        main([*words, str(tmp_path / "again"), "--json"])
    assert json.loads(capsys.readouterr().out)["left"] == 6


def test_a_folder_of_splits_is_not_packed_as_one(tmp_path, capsys):
    for name in "train/cat", "train/dog", "test/cat":
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "x.png").write_bytes(image(1))
    with pytest.raises(SystemExit) as ended:
        main(["pack", str(tmp_path / "images"), "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "has a folder train/; pack each split by itself" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    for split in "train", "test":
        with pytest.raises(SystemExit) as ended:
            main(["pack", str(tmp_path / "images" / split), "--out", str(tmp_path / "out" / split)])
        assert ended.value.code == 0
    assert open_source(str(tmp_path / "out")).classes == ["cat", "dog"]


def test_the_command_packs_a_folder_and_checks_it(tmp_path, capsys):
    for i in range(120):
        path = tmp_path / "photos" / "xy"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(i) if i != 7 else b"")
    out = tmp_path / "shards"
    with pytest.raises(SystemExit) as ended:
        main(["pack", str(tmp_path / "photos"), "--out", str(out), "--shard-images", "50", "--json"])
    assert ended.value.code == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert (result["images"], result["shards"], len(result["skipped"])) == (119, 3, 1)
    assert "7.png: it is empty" in shown.err
    with pytest.raises(SystemExit) as ended:
        main(["pack", str(out), "--verify"])
    assert ended.value.code == 0
    assert "3 of 3 shards are whole" in capsys.readouterr().out
    (out / "shard-000001.tar").unlink()
    with pytest.raises(SystemExit) as ended:
        main(["pack", str(out), "--verify"])
    assert ended.value.code == 1
    with pytest.raises(SystemExit) as ended:
        main(["pack", str(tmp_path / "photos")])
    assert ended.value.code == 2
    assert "--out is needed" in capsys.readouterr().err
