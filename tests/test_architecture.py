"""The house: who may import whom, and that the front door opens without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import moco

ROOT = Path(moco.__file__).parent
FLOORS = {
    "loss": 0, "world": 0, "processes": 0, "chance": 0, "batch": 0, "norm": 0, "kernels": 0,
    "heap": 0, "channels": 0, "processor": 0, "device": 0, "cluster": 0, "files": 0, "words": 0,
    "resnet": 1, "vit": 1, "encoder": 1, "keys": 1, "dictionary": 1,
    "data": 2, "training": 2, "evaluate": 2, "export": 2,
    "transfer": 2, "transfer_recipe": 3, "transfer_build": 3, "transfer_start": 3, "transfer_measure": 3,
    "transfer_loop": 4, "transfer_run": 4,
    "recipe": 3, "recipe_file": 3, "recipes": 3, "studies": 3, "build": 3, "descent": 3, "images": 3,
    "launch": 4, "finish": 4, "starts": 4, "assess": 4, "verdict": 4, "supervised": 4, "run_folder": 4,
    "report": 4, "console": 4, "tensorboard": 4, "cli": 4, "ablate": 4,
    "weights": 4, "embeddings": 4, "embedding_files": 4, "fit": 4, "loggers": 4, "plan": 4,
    "__main__": 4, "__init__": 4,
}  # fmt: skip


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        yield (
            path,
            ".".join(("moco", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"),
        )


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "moco":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "moco")


def room(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


NAMES = {name for _, name in modules()}


def targets(path):
    """Modules of ours that a file imports."""
    for name in imports(path):
        while name not in NAMES:
            name = name.rpartition(".")[0]
        yield name


def test_every_room_has_a_floor():
    assert {room(name) for _, name in modules()} == set(FLOORS)


@pytest.mark.parametrize(("path", "name"), [pytest.param(p, n, id=n) for p, n in modules()])
def test_imports_go_down_or_stay_on_the_floor(path, name):
    own = FLOORS[room(name)]
    for target in targets(path):
        if target == "moco":
            continue  # the version
        assert FLOORS[room(target)] <= own, f"{name} imports {target} from a floor above"
        if own == 2:
            siblings = FLOORS[room(target)] == 2 and room(target) != room(name)
            assert not siblings, f"{name} imports its sibling {target}"


def test_nothing_imports_in_a_circle():
    graph = {name: {t for t in targets(path) if t != "moco"} - {name} for path, name in modules()}
    while graph:
        free = [name for name, needs in graph.items() if not needs & graph.keys()]
        assert free, f"a circle among {sorted(graph)}"
        for name in free:
            del graph[name]


def test_files_stay_short():
    long = {n: len(p.read_text().splitlines()) for p, n in modules()}
    del long["moco.recipe"]  # one list of values, whole in one place
    assert {name: lines for name, lines in long.items() if lines > 300} == {}


def test_help_does_not_import_torch():
    code = (
        "import sys, moco.cli\ntry: moco.cli.main(['--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "False"


def test_public_names_exist():
    for name in moco.__all__:
        assert getattr(moco, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = moco.nothing


def test_every_public_function_and_class_is_documented():
    for path, name in modules():
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), name
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{name}.{node.name}"
