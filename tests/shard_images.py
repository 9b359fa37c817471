"""Images in tar shards, whole and damaged."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from moco.data.pack import Member, pack
from moco.data.views import Views
from tiny import tiny_recipe


def image(number: int, size: int = 20, kind: str = "PNG") -> bytes:
    """A picture that tells its number."""
    pixels = np.random.default_rng(number).integers(0, 255, (size, size + 4, 3), dtype=np.uint8)
    pixels[0, 0] = number // 256, number % 256, 7
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def number_of(source, index: int) -> int:
    high, low, mark = source.read(index)[:, 0, 0].tolist()
    assert mark == 7
    return 256 * high + low


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """130 pictures of three classes in shards of twenty."""
    folder = tmp_path_factory.mktemp("packed") / "shards"
    made = pack(
        lambda i: Member(".png", image(i), i % 3), 130, folder, classes=("a", "b", "c"), shard_images=20
    )
    assert (made.images, made.shards, made.skipped) == (130, 7, ())
    return folder


def copy(folder, to):
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def tarred(path, *names):
    """A tar file of pictures under these names."""
    with tarfile.open(path, "w") as tar:
        for number, name in enumerate(names):
            about = tarfile.TarInfo(name)
            about.size = len(image(number))
            tar.addfile(about, io.BytesIO(image(number)))


@pytest.fixture
def damaged(packed, tmp_path):
    """The shards without the third."""
    folder = copy(packed, tmp_path / "damaged")
    (folder / "shard-000002.tar").unlink()
    return folder


def split(root, test=("a", "c")):
    """Shards of three classes below train/, and below test/ of two that have numbers of their own."""
    pack(lambda i: Member(".png", image(i), i % 3), 6, root / "train", classes=("a", "b", "c"))
    pack(lambda i: Member(".png", image(i), i % 2), 4, root / "test", classes=test)


def views():
    values = tiny_recipe().views
    return Views(type(values)(**{**vars(values), "mean": (0.5,) * 3, "std": (0.25,) * 3}))
