"""The doctor: every awkward file by name, copies found, and lists that training honours."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from commands import call
from moco.data import doctor
from moco.data.doctor import report
from moco.data.duplicates import digest, exact, miniatures, near
from moco.data.encoded import FolderSource
from moco.data.procedural import procedural
from moco.data.quarantine import read_quarantine
from moco.data.source import ArraySource
from test_unreadable import photographs

# what the doctor must say of each entry of the pack, besides those that are in order
VERDICTS = {
    "truncated_60.jpg": "truncated", "truncated_header.jpg": "no image", "truncated_last2.jpg": "truncated",
    "truncated_progressive_50.jpg": "truncated", "zero_byte.jpg": "the file is empty",
    "all_zeros.jpg": "no image", "text.jpg": "no image", "html_404.jpg": "no image",
    "px_0x0.png": "0 x 0 pixels", "bomb_header_60000x60000.png": "reading.max_pixels",
    "bomb_valid_13500x13500_1bit.png": "reading.max_pixels",
    "bomb_valid_10000x10000_1bit.png": "reading.max_pixels",
    "bomb_text_chunk.png": "Decompressed data too large", "bad_crc.png": "broken data stream",
    "truncated_50.png": "truncated", "signature_only.png": "no image",
    "corrupt_entropy.jpg": "damaged", "corrupt_silent.jpg": "damaged",
    "trailing_garbage.jpg": "bytes after the end", "png_named.jpg": "misnamed: PNG",
    "webp_named.jpg": "misnamed: WEBP", "gray.jpg": "grey", "cmyk.jpg": "CMYK", "cmyk.tiff": "CMYK",
    "gray16.png": "16 bits per channel: kept", "rgb16.png": "16 bits per channel: kept",
    "palette.png": "palette", "palette_transparency_bytes.png": "transparency",
    "palette_transparency_index.png": "transparency", "rgba.png": "transparency",
    "gray_alpha.png": "transparency", "onebit.png": "1 bit", "rgb_trns.png": "transparency",
    "float32.tiff": "floating point", "exif_orientation_2.jpg": "turned upright",
    "exif_orientation_3.jpg": "turned upright", "exif_orientation_6.jpg": "turned upright",
    "exif_orientation_8.jpg": "turned upright", "exif_corrupt.jpg": "broken EXIF",
    "icc_corrupt.jpg": "broken colour profile", "animated.gif": "animated", "animated.png": "animated",
    "animated.webp": "animated", "px_1x1.png": "tiny", "px_1x5000.png": "extreme shape",
    "px_5000x1.jpg": "extreme shape", "px_2x3.jpg": "tiny", ".hidden.jpg": "begins with a dot",
    "._apple_double.jpg": "begins with a dot", "Thumbs.db": "no image's ending",
    "no_suffix": "a JPEG without an image's ending", "directory.jpg/": "empty folder",
    "empty_class/": "empty folder",
}  # fmt: skip


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    shared = Path(__file__).parents[2] / "shared" / "data" / "hostile"
    if not shared.is_dir():
        pytest.skip(f"needs the image sets in {shared.parent}")
    folder = tmp_path_factory.mktemp("hostile")
    with zipfile.ZipFile(shared / "hostile.zip") as archive:
        archive.extractall(folder)
    manifest = json.loads((shared / "manifest.json").read_text(encoding="utf-8"))["files"]
    return report(FolderSource(folder / "hostile")), [entry["name"] for entry in manifest]


def test_every_entry_of_the_hostile_pack_is_named(hostile):
    pytest.importorskip("simplejpeg")  # sees damage that Pillow passes over
    result, names = hostile
    told: dict[str, list[str]] = {name: [] for name in names}
    for part in "unreadable", "skipped":
        for name, why in result[part].items():
            told[name].append(why)
    for remark, files in result["remarks"].items():
        for name in files:
            told[name].append(remark)
    wrong = {
        name: said
        for name, said in told.items()
        if (VERDICTS[name] not in " ".join(said) if name in VERDICTS else said)
    }
    assert len(names) == 61
    assert wrong == {}  # what is in order is not talked about


def test_duplicates_of_the_hostile_pack_are_one_group(hostile):
    result, names = hostile
    (group,) = result["duplicates"]["exact"]
    assert "ok_rgb.jpg" in group
    assert "UPPER.JPEG" in group
    assert len(group) == len([n for n in names if n not in VERDICTS]) - 1  # all but the progressive one


def photo(seed: int, size: int = 120) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 7, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return Image.fromarray((smooth[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8))


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def recompressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=30)
    return Image.open(buffer)


COPIES = {
    "the same": lambda image: image,
    "half the size": lambda image: image.resize((60, 60)),
    "another shape": lambda image: image.resize((120, 90)),
    "recompressed": recompressed,
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "cropped": lambda image: image.crop((6, 6, 114, 114)),
    "cropped and mirrored": lambda image: image.crop((12, 12, 108, 108)).transpose(
        Image.Transpose.FLIP_LEFT_RIGHT
    ),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found_and_others_are_not(kind):
    originals = torch.stack([miniatures(tensor(photo(i))) for i in range(30)])
    copies = torch.stack([miniatures(tensor(COPIES[kind](photo(i)))) for i in range(0, 30, 3)])
    pairs = near(copies, originals)
    assert {(pair.first, pair.second) for pair in pairs} == {(i, 3 * i) for i in range(10)}
    assert all(0.97 <= pair.similarity <= 1.0001 for pair in pairs)
    within = near(torch.cat([originals, copies]))
    assert {(pair.first, pair.second) for pair in within} == {(3 * i, 30 + i) for i in range(10)}


def test_images_without_structure_are_nobodys_copies():
    flat = torch.stack(
        [miniatures(torch.full((3, 40, 40), value, dtype=torch.uint8)) for value in (0, 90, 255)]
    )
    assert near(flat) == []


def test_exact_copies_by_their_bytes():
    marks = [digest(b) for b in (b"a", b"b", b"a", b"c", b"a")]
    assert exact(marks) == [[0, 2, 4]]
    assert exact(marks, [digest(b"c"), digest(b"a"), digest(b"a")]) == [[0, 1], [2, 1], [3, 0], [4, 1]]


def test_a_file_without_an_images_ending_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    photographs(tmp_path, 3, broken=())
    (tmp_path / "notes.txt").write_text("hello")

    def closed(path, *_):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(doctor, "open", closed, raising=False)
    assert report(FolderSource(tmp_path))["skipped"] == {
        "notes.txt": "no image's ending, and it cannot be opened: Permission denied"
    }


def test_folders_that_this_package_wrote_are_skipped_by_their_name(tmp_path):
    photographs(tmp_path, 3, broken=())
    for name, mark in ("run", "recipe.toml"), ("study", "study.json"), ("report", "doctor.json"):
        (tmp_path / name).mkdir()
        photographs(tmp_path / name / "cells", 1, broken=())
        (tmp_path / name / mark).touch()
    source = FolderSource(tmp_path)
    assert (len(source), report(source)["skipped"].keys()) == (3, {"run/", "study/", "report/"})


def test_statistics_are_those_of_all_pixels():
    source = procedural(20, size=16)
    result = report(source)
    values = source.pixels.double().transpose(0, 1).flatten(1)
    assert result["statistics"]["mean"] == pytest.approx(values.mean(1).tolist(), abs=1e-4)
    assert result["statistics"]["std"] == pytest.approx(values.std(1, correction=0).tolist(), abs=1e-4)
    assert result["classes"] == dict.fromkeys(source.classes, 2)
    constant = report(ArraySource(torch.zeros(2, 1, 20, 20, dtype=torch.uint8)))
    assert list(constant["remarks"]) == ["constant: every pixel is the same"]
    assert constant["duplicates"]["exact"] == [["array[0]", "array[1]"]]


def test_the_command_writes_lists_that_pretrain_takes(tmp_path, capsys):
    data = photographs(tmp_path / "images", 30, ("03.png", "17.png"))
    test = photographs(tmp_path / "test", 4, ())
    out = tmp_path / "doctor"
    call("doctor", data, "--out", out, "--against", test, "--recipe", "cpu")
    shown = capsys.readouterr().out
    assert "30 images, 28 readable, 3 channels of uint8" in shown
    assert "2  truncated: 03.png, 17.png" in shown
    assert "also in" in shown
    assert read_quarantine(out / "quarantine.jsonl") == {"03.png", "17.png"}
    result = json.loads((out / "doctor.json").read_text())
    assert sorted(result["leakage"]["exact"])[0] == ["00.png", "00.png"]
    assert len(result["leakage"]["exact"]) == 3  # of the four, one is broken here
    assert np.asarray(Image.open(out / "views.png")).std() > 5
    call("doctor", data, "--out", out, "--json")
    assert json.loads(capsys.readouterr().out)["readable"] == 28
    (both := tmp_path / "both").mkdir()
    photographs(both / "train", 6, ())
    photographs(both / "test", 4, ())
    call("doctor", both, "--out", tmp_path / "of-both", "--recipe", "cpu")  # their own test images
    shown = capsys.readouterr().out
    assert "test): 4 exact" in shown
    assert "... (all of them in doctor.json)" in shown
    call("doctor", data, "--out", data, expect=2)
    assert "holds something else" in capsys.readouterr().err
    call("doctor", tmp_path / "none", expect=2)
    assert "there is no" in capsys.readouterr().err
    call("doctor", data, "--workers", 0, "--out", out, expect=2)
    assert "workers must be at least 1 thread, got 0" in capsys.readouterr().err


def test_a_full_disk_leaves_the_lists_as_they_were(tmp_path, monkeypatch, capsys):
    data, out = photographs(tmp_path / "images", 6, ("03.png",)), tmp_path / "doctor"
    call("doctor", data, "--out", out)
    (data / "03.png").unlink()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("os.fsync", full)
        call("doctor", data, "--out", out, expect=1)
    assert "No space left on device" in capsys.readouterr().err
    assert read_quarantine(out / "quarantine.jsonl") == {"03.png"}
    assert json.loads((out / "doctor.json").read_text())["readable"] == 5
    (killed := tmp_path / "killed").mkdir()
    (killed / "doctor.json.host-1.tmp").write_text("{")
    call("doctor", data, "--out", killed)
    assert read_quarantine(killed / "quarantine.jsonl") == set()
