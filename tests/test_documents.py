"""The documents: blocks run, commands exist, links lead somewhere, tables are current."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{path.name}-{number}")
    for path in DOCUMENTS
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", path.read_text(), re.M | re.S))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_run(block, capsys):
    exec(compile(block, "README.md", "exec"), {"__name__": "block"})
    assert "nan" not in capsys.readouterr().out


def test_there_are_blocks():
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert target.startswith("http") or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_recipes_exist(path):
    from moco.cli import COMMANDS
    from moco.recipes import RECIPES
    from moco.recipes.transfer import TRANSFER_RECIPES
    from moco.studies import STUDIES

    for command, word in re.findall(r"^(?:\$ |\| `)?moco ([\w-]+) ?([\w-]*)", path.read_text(), re.M):
        assert command in COMMANDS, command
        assert command != "pretrain" or word.startswith("-") or word in RECIPES, word
        assert command != "ablate" or word in STUDIES or word == "mine", word
        assert command != "transfer" or word.startswith("-") or word in (*TRANSFER_RECIPES, "table"), word


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.M):
        assert f"\n{target}:" in makefile


@pytest.mark.parametrize("script", ["results.py", "transfer.py", "speed_table.py"])
def test_tables_are_those_of_the_result_rows(script):
    command = [sys.executable, str(ROOT / "benchmarks" / script), "tables", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_reference_to_installation_is_free_of_addresses():
    for name in "constraints.txt", "pyproject.toml":
        assert "://" not in (ROOT / name).read_text()
