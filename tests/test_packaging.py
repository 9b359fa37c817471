"""The package as it is installed: a wheel with all its files, quick help, and completion in a shell."""

import json
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest

from moco.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_every_file_of_the_package(tmp_path):
    hatchling = pytest.importorskip("hatchling.builders.wheel", reason="needs hatchling")
    built = Path(
        next(hatchling.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    )
    inside = set(zipfile.ZipFile(built).namelist())
    files = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src" / "moco").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files <= inside
    assert "moco/report/page/report.html" in inside
    assert "moco/py.typed" in inside  # without it type checkers pass over the annotations


def test_few_packages_are_needed_besides_torch():
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert len(needs) <= 15


def test_help_is_quick():
    def once():
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "moco", "--help"], check=True, capture_output=True)
        return time.perf_counter() - start

    bare = min(_time_of("pass") for _ in range(3))
    assert min(once() for _ in range(3)) < 0.3 + bare  # the interpreter's own start is not ours


def _time_of(code):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def complete(script, *words):
    """What bash offers for the last of these words."""
    code = f"{script}\nCOMP_WORDS=({' '.join(words)})\nCOMP_CWORD={len(words) - 1}\n"
    code += '_moco; printf "%s\\n" "${COMPREPLY[@]}"'
    shown = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    return shown.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_recipes_and_flags(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["completion", "bash"])
    script = capsys.readouterr().out
    assert set(complete(script, "moco", "e")) == {name for name in COMMANDS if name.startswith("e")}
    assert complete(script, "moco", "pretrain", "dem") == ["demo"]
    assert "--keys.momentum" in complete(script, "moco", "pretrain", "--keys.m")
    assert complete(script, "moco", "report", "--proj") == ["--projection"]


def test_other_shells_have_theirs(capsys):
    for shell, part in (
        ("zsh", "bashcompinit"),
        ("fish", "complete -c moco -f -n __fish_use_subcommand -a pretrain"),
    ):
        with pytest.raises(SystemExit, match="0"):
            main(["completion", shell])
        assert part in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["completion", "bash", "--json"])
    flags = json.loads(capsys.readouterr().out)
    assert flags.keys() == COMMANDS.keys()
    assert "--to" in flags["export"]
