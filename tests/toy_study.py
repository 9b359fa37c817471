"""A study of two temperatures that takes seconds, and its pieces."""

from dataclasses import replace
from pathlib import Path

import pytest

from moco.ablate.conduct import run_study
from moco.ablate.execute import Machine
from moco.cli import main
from moco.recipe import Cosine, Encoder, InfoNCE, MomentumQueue, Monitor
from moco.studies import Axis, Cell, Study
from tiny import save_arrays, tiny_recipe

BASE = tiny_recipe(
    encoder=Encoder(arch="resnet10", width=8, stem="small2", dim=16, bn_group=4),
    epochs=1,
    schedule=Cosine(),
    dictionary=MomentumQueue(size=40),
    monitor=Monitor(bank=40, queries=20, k=10),
)
HERE = Machine(jobs=0)
SMALL = {
    "mechanisms": (16,),
    "momentum": (0, 0.9),
    "shuffle-bn": (4,),
    "temperature": (0.1,),
    "v2": (2,),
    "architectures": (1, 2),
    "batch": (16, 32),
    "symmetric": (2,),
    "v3": (32,),
}


def toy(*values):
    """Two temperatures, or those given."""
    made = tuple(Cell(f"t-{t:g}", replace(BASE, loss=InfoNCE(t)), t) for t in values or (0.1, 0.5))
    return Study("toy", "Which temperature?", made, Axis("T", "linear"), reference=made[0].name)


def toy_file(folder):
    """The study as a file of the user's."""
    file = folder / "toy.py"
    file.write_text(
        "import sys\n"
        f"sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
        "from toy_study import toy\n\n\ndef study(base):\n    return toy()\n"
    )
    return str(file)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return save_arrays(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Runs without their own pictures, which other tests cover."""
    for name in "finish.plot_curves", "launch.plot_views":
        monkeypatch.setattr(f"moco.{name}", lambda *_, **__: None)


@pytest.fixture(scope="module")
def calm(data, tmp_path_factory):
    """A study that nothing disturbed."""
    out = tmp_path_factory.mktemp("calm") / "study"
    with pytest.MonkeyPatch.context() as patch:
        for name in "finish.plot_curves", "launch.plot_views":
            patch.setattr(f"moco.{name}", lambda *_, **__: None)
        run_study(toy(), data=data, out=out, seeds=(0, 1), machine=HERE, say=lambda _: None, estimate=False)
    return out


def quiet(study, *, estimate=False, **more):
    return run_study(study, machine=HERE, say=lambda _: None, estimate=estimate, **more)


def call(*words, expect=0):
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert stopped.value.code == expect
