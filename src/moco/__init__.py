"""Momentum Contrast for unsupervised visual representation learning (He et al., CVPR 2020).

The parts of the method are here by name; they are imported when they are first used, so that the
command line answers without waiting for torch.
"""

import importlib
import importlib.util
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Batch": "moco.batch",
    "Encoder": "moco.encoder",
    "Entries": "moco.loss",
    "InBatch": "moco.dictionary",
    "MemoryBank": "moco.dictionary",
    "MomentumKeys": "moco.keys",
    "MomentumQueue": "moco.dictionary",
    "QueryKeys": "moco.keys",
    "Recipe": "moco.recipe",
    "Solo": "moco.world",
    "TiedKeys": "moco.keys",
    "Views": "moco.data.views",
    "backbone_metadata": "moco.export.backbone",
    "diagnose": "moco.evaluate.diagnostics",
    "few_label_curve": "moco.evaluate.fewlabel",
    "inflate_stem": "moco.encoder",
    "info_nce": "moco.loss",
    "knn_predict": "moco.evaluate.knn",
    "linear_grid": "moco.evaluate.linear",
    "load_backbone": "moco.export.backbone",
    "logistic_regression": "moco.evaluate.logistic",
    "margin": "moco.loss",
    "momentum_update": "moco.keys",
    "nce": "moco.loss",
    "open_source": "moco.data.open",
    "pretrain": "moco.launch",
    "resume": "moco.launch",
    "run_study": "moco.ablate.conduct",
    "trunk": "moco.encoder",
}
__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if not name.startswith("_") and importlib.util.find_spec(f"moco.{name}") is not None:
        return importlib.import_module(f"moco.{name}")
    raise AttributeError(f"module 'moco' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
