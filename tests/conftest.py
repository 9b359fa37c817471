"""Shapes are checked in every test: jaxtyping's annotations, enforced by beartype."""

import os
from pathlib import Path

from jaxtyping import install_import_hook

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread per test process: pytest-xdist runs several
if not os.path.exists("/dev/nvidiactl"):  # read when Triton is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
SOURCE = Path(__file__).parents[1] / "src"
_hook = install_import_hook(
    [
        ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        for path in sorted(SOURCE.rglob("*.py"))
        if "from jaxtyping import" in path.read_text()
    ],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",  # an int is a float, too
)

import pytest  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from PIL import Image  # noqa: E402

import simulated  # noqa: E402, F401  (a device of torch's must be known before the first backward pass)
from moco.data.procedural import procedural  # noqa: E402
from scenes import write_voc  # noqa: E402

torch.set_num_threads(1)
SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    """Real images that lie beside the checkout, where there are any."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the image sets in {SHARED}")
    return SHARED


@pytest.fixture
def unit():
    """Random unit vectors in double precision: unit(rows, columns, seed)."""

    def make(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return F.normalize(torch.randn(*shape, generator=generator, dtype=dtype), dim=-1)

    return make


@pytest.fixture
def voc_root(tmp_path):
    """Scenes in VOC's layout: eight to train on, four to test on."""
    return write_voc(tmp_path, {"train": 8, "test": 4})


@pytest.fixture
def folder(tmp_path):
    """Class folders train/cat and train/dog with six images each, and two in test/."""
    pixels = procedural(12, size=16).pixels
    for i in range(12):
        path = tmp_path / "images" / "train" / ("cat", "dog")[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i].permute(1, 2, 0).numpy()).save(path)
    for i in range(2):
        path = tmp_path / "images" / "test" / ("cat", "dog")[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i].permute(1, 2, 0).numpy()).save(path)
    return tmp_path / "images"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a finished run on a few labelled images."""
    from commands import TINY, call
    from tiny import save_arrays

    folder = tmp_path_factory.mktemp("protocols")
    data = save_arrays(folder)
    call("pretrain", "demo", *TINY, "--data", data, "--out", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A backbone file as a pre-training run leaves it."""
    from moco.encoder import trunk
    from moco.export.backbone import backbone_bytes

    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(1)
    net, _ = trunk("resnet10", width=4)
    about = {"arch": "resnet10", "width": 4, "stem": "imagenet", "channels": 3, "size": 64,
             "mean": [0.5] * 3, "std": [0.2] * 3}  # fmt: skip
    (folder / "backbone.safetensors").write_bytes(backbone_bytes(net, about))
    return folder


@pytest.fixture(scope="module")
def transferred(tmp_path_factory, start):
    """Two trials of one start."""
    from moco.transfer_run import transfer
    from transfers import TINY, voc_data

    root = tmp_path_factory.mktemp("transfer")
    data = voc_data(root / "data")
    result = transfer(TINY, init=str(start), data=data, out=root / "run", trials=2, device="cpu")
    return root, data, result
