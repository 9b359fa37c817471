"""A few hundred mutated files; `benchmarks/fuzz.py` takes ten thousand."""

import pickle
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from moco.data.decode import decode
from moco.data.form import Form
from moco.data.reading import Reading
from moco.data.unreadable import Unreadable
from moco.export.backbone import load_backbone
from moco.training.checkpoint import Checkpoints

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from fuzz import mutant, seeds

MUTANTS = 300


@pytest.fixture(scope="module")
def mutants():
    rng, base = np.random.default_rng(1), seeds()
    return [content for _, content in base] + [mutant(base[i % len(base)][1], rng) for i in range(MUTANTS)]


def test_mutants_are_decoded_or_refused_and_never_anything_else(mutants):
    readable, reasons = 0, set[str]()
    for content in mutants:
        begin = time.perf_counter()
        try:
            image = decode(content, "x", Form(), Reading())
            assert image.dtype == torch.uint8
            assert image.shape[0] == 3
            readable += 1
        except Unreadable as refused:
            reasons.add(refused.reason)
        assert time.perf_counter() - begin < 20
    assert 20 < readable < MUTANTS
    assert "" not in reasons


class Bomb:
    """A pickle that runs code when it is opened."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_an_untrusted_checkpoint_or_backbone_cannot_run_code(tmp_path):
    mark = tmp_path / "ran"
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, {"f_q": Bomb(mark)})
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        checkpoints.load()
    torch.save(Bomb(mark), tmp_path / "backbone.safetensors")
    with pytest.raises(Exception, match=r".") as refused:
        load_backbone(tmp_path / "backbone.safetensors")
    assert "afetensor" in type(refused.value).__name__ + str(refused.value)
    assert not mark.exists()
