"""Every command from end to end, and every wrong call: exit code 2, one sentence, nothing begun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import moco
from commands import TINY, call
from moco import recipe_file
from moco.cli import COMMANDS
from moco.console import Terminal
from moco.recipes import RECIPES
from moco.run_folder import leave_note, read_run
from moco.studies import STUDIES, cores
from tiny import save_arrays


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    data = save_arrays(folder)
    call("pretrain", "demo", *TINY, "--data", data, "--out", folder / "run", "--tensorboard")
    return folder / "run", data


def test_pretrain_prints_a_table_and_resumes(run, capsys):
    out, _ = run
    call("pretrain", "--resume", out)
    shown = capsys.readouterr()
    assert "trained by momentum contrast" in shown.out
    assert "same network, untrained" in shown.out
    assert "raw pixels" in shown.out
    assert "is finished already" in shown.err
    assert list((out / "tensorboard").iterdir())


def test_json_is_all_there_is_on_standard_output(run, capsys):
    out, data = run
    call("pretrain", "demo", *TINY, "--data", data, "--out", out, "--json")
    assert json.loads(capsys.readouterr().out)["steps"] == 3
    call("knn", out, "--k", 10, "--json")
    values = json.loads(capsys.readouterr().out)
    assert values.keys() == {"k", "temperature", "knn_trunk", "knn_output"}
    call("recipes", "--json")
    assert json.loads(capsys.readouterr().out).keys() == RECIPES.keys()
    call("recipes", "v1", "--json")
    assert json.loads(capsys.readouterr().out)["batch"] == 256


@pytest.mark.parametrize("names", [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")])
def test_commands_of_one_process_refuse_to_be_several(run, monkeypatch, capsys, names):
    out, _ = run
    for rank, code in ("0", 2), ("1", 0):
        monkeypatch.setenv(names[0], rank)
        monkeypatch.setenv(names[1], "2")
        for command in "knn", "linear":
            call(command, out, expect=code)
            shown = capsys.readouterr()
            said = f"moco {command} works in one process, got 2: start it without torchrun or srun"
            assert (said in shown.err) == (rank == "0")
            assert shown.out == ""
        call("pretrain", "--help")
        assert "moco pretrain" in capsys.readouterr().out
    monkeypatch.setenv(names[1], "1")
    monkeypatch.setenv(names[0], "0")
    call("knn", out, "--k", 10)


@pytest.mark.parametrize("words", [["--help"], ["recipes", "v2"], ["recipes", "--json"]], ids="-".join)
def test_a_reader_that_stops_listening_ends_the_command_quietly(words):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "moco", *words], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 141  # 128 and SIGPIPE, as of any other command


def test_a_recipe_s_quarantine_list_is_not_that_of_other_images(run, tmp_path):
    out, data = run
    values, about = read_run(out)
    listed = str(tmp_path / "q.jsonl")
    (tmp_path / "r.toml").write_text(recipe_file.text(values, about | {"quarantine": listed}))
    arrays = np.load(data)
    np.savez(tmp_path / "others.npz", images=arrays["images"])
    words = ["--data", tmp_path / "others.npz", "--out", tmp_path / "out", "--json"]
    call("pretrain", "--from", tmp_path / "r.toml", *words)
    assert read_run(tmp_path / "out")[1]["quarantine"] == ""


@pytest.mark.parametrize("given", [[], ["--quarantine", "{list}"], ["--quarantine={list}"]])
def test_a_list_that_is_asked_for_is_left_out_whatever_the_recipe_says(given, run, tmp_path, monkeypatch):
    listed = tmp_path / "q.jsonl"
    listed.write_text("")
    values, about = read_run(run[0])
    (tmp_path / "r.toml").write_text(recipe_file.text(values, about | {"quarantine": str(listed)}))
    seen = {}

    def pretrain(_, **words):
        seen.update(words)
        raise ValueError("enough")

    monkeypatch.setattr("moco.launch.pretrain", pretrain)
    words = [word.format(list=listed) for word in given]
    words += ["--data", tmp_path, "--out", tmp_path / "o"]
    call("pretrain", "--from", tmp_path / "r.toml", *words, expect=2)
    assert seen["quarantine"] == (listed if given else None)


@pytest.mark.parametrize("name", ["photos[old]/3.png", "x[/old]/3.png", "a/:cat:.png"])
def test_names_are_said_as_they_are(name, capsys):
    moco.console.Terminal().say(f"another image takes the place of {name}")
    assert name in capsys.readouterr().err


def test_training_goes_on_when_nobody_listens_any_more(run, tmp_path):
    """`2>&1 | head -1`: what is said is lost, the run is not."""
    code = (
        "import sys; sys.path.insert(0, 'tests'); import moco; from moco.console import Terminal; "
        "from tiny import tiny_recipe; "
        f"data, out = {run[1]!r}, {str(tmp_path / 'run')!r}; "
        "moco.pretrain(tiny_recipe(), data=data, out=out, observers=[Terminal()])"
    )
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    process.stderr.readline()
    process.stderr.close()
    assert process.wait(120) == 0
    assert (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "stopped").exists()


def test_only_a_run_that_was_asked_to_leave_says_so(tmp_path):
    leave_note(tmp_path, SystemExit(1))
    assert not (tmp_path / "stopped").exists()
    leave_note(tmp_path, SystemExit(75))
    assert "to be continued" in (tmp_path / "stopped").read_text()


def test_a_broken_pipe_of_something_else_is_a_failure(monkeypatch, capfd):
    def fails(words):
        raise BrokenPipeError(32, f"the tracker's connection is gone {words}")

    monkeypatch.setattr("moco.cli.recipes.run", fails)
    call("recipes", expect=1)
    assert "the run failed: [Errno 32] the tracker's connection is gone" in capfd.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_the_terminal_cannot_show_are_printed(encoding):
    code = "import moco.cli as c, moco.cli.recipes as r, os\n"
    code += "r.run = lambda words: print(os.fsdecode(b'caf\\xe9 ') + chr(0x3b8))\nc.main(['recipes'])"
    environment = os.environ | {"PYTHONIOENCODING": f"{encoding}:strict"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(rb"caf\udce9 ")


def test_the_command_itself_needs_no_torch():
    code = "import sys\nfrom moco.cli import main\ntry: main(['--version'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_knn_takes_the_runs_images_or_others(run, capsys, tmp_path):
    out, _ = run
    call("knn", out, "--k", 10)
    assert "trained by momentum contrast" in capsys.readouterr().out
    call("knn", out, "--k", 10, "--data", save_arrays(tmp_path, images=80))
    assert "trained by momentum contrast" in capsys.readouterr().out


def test_a_recipe_file_reproduces_a_run(run, tmp_path):
    out, data = run
    call("pretrain", "--from", out / "recipe.toml", "--data", data, "--out", tmp_path / "again")
    assert (tmp_path / "again/journal.jsonl").read_bytes() == (out / "journal.jsonl").read_bytes()
    assert (tmp_path / "again/backbone.safetensors").read_bytes() == (
        out / "backbone.safetensors"
    ).read_bytes()


def test_a_tilde_is_the_users_folder_wherever_it_stands(tmp_path, monkeypatch):
    """Shells leave that of --out=~/runs alone, and so does Python."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    call("pack", "~/images", "--out=~/shards")
    assert (tmp_path / "shards" / "shards.tsv").exists()
    for begin in (
        lambda: moco.pretrain("cpu", data="procedural", out="~/images"),
        lambda: moco.run_study(STUDIES["batch"](cores()), data="procedural", out="~/images"),
    ):
        with pytest.raises(FileExistsError, match=f"^{tmp_path}/images"):
            begin()
    assert not (tmp_path / "~").exists()


def test_help_and_lists(capsys):
    call()
    assert "moco pretrain" in capsys.readouterr().out
    call("--version")
    assert capsys.readouterr().out.startswith("moco 0")
    call("recipes")
    shown = capsys.readouterr().out
    assert all(name in shown for name in RECIPES)
    call("recipes", "cifar")
    shown = capsys.readouterr().out
    assert "The released CIFAR-10 demo" in shown
    assert "bn_group = 64" in shown
    for command, (takes, _) in COMMANDS.items():
        call(command, "--help")
        usage = capsys.readouterr().out.partition("options")[0]
        assert f"usage: moco {command} " in usage
        first = takes.split()[0].strip("[]")  # what the list of commands calls it
        assert first in usage or command in ("pretrain", "transfer", "completion")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("dance", "there is no command 'dance'"),
        ("pretrain v9", "there is no recipe 'v9'"),
        ("pretrain v1 --data {data}", "out"),
        ("pretrain v1 --out {out}", "data"),
        ("pretrain v1 {both} --epcohs 3", "--epcohs"),
        ("pretrain v1 {both} --epochs many", "many"),
        (
            "pretrain v1 {both} --keys.momentum 1.5",
            "keys.momentum must be in [0, 1), got 1.5",
        ),
        ("pretrain v1 {both} --dictionary.size 0", "dictionary.size must be at least 1"),
        (
            "pretrain v1 {both} --encoder.bn-group 48",
            "encoder.bn_group must divide the batch",
        ),
        ("pretrain v1 {both} --loss.temperature 0", "loss.temperature must be above 0"),
        ("pretrain v1 {both}", "fewer than a batch of 256; use a smaller --batch"),
        ("pretrain v1 {both} --batch 64", "--dictionary.size 50 or --dictionary.mask-own"),
        ("pretrain v1 --data {tmp}/none --out {out}", "there is no {tmp}/none"),
        ("pretrain v1 --data {tmp}/empty --out {out}", "no image in {tmp}/empty"),
        ("pretrain v1 --data {data} --out {tmp}/taken", "nothing was overwritten"),
        ("pretrain v1 {both} --device tpu", "there is no device 'tpu' here"),
        (
            "pretrain v1 {both} --encoder.arch vgg99 --batch 64",
            "unknown architecture 'vgg99'",
        ),
        ("pretrain --resume {tmp}/none", "holds no run"),
        ("pretrain --from {tmp}/none.toml", "none.toml"),
        ("pretrain --from", "--from takes a run, or a recipe.toml"),
        ("knn {tmp}/none", "holds no run"),
        ("knn {run} --k 1000", "k must be between 1 and the 100 images searched, got 1000"),
        ("knn {run} --data {tmp}/bare", "has no labels"),
        ("recipes v9", "there is no recipe 'v9'"),
    ],
)
def test_wrong_calls_end_with_2_and_one_sentence(run, tmp_path, capsys, words, message):
    import numpy as np

    folder, data = run
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    (tmp_path / "bare").mkdir()
    from PIL import Image

    Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8)).save(tmp_path / "bare" / "x.png")
    places = {"data": data, "tmp": tmp_path, "run": folder, "out": tmp_path / "out"}
    places["both"] = f"--data {data} --out {tmp_path / 'out'}"
    call(*words.format(**places).split(), expect=2)
    shown = capsys.readouterr()
    assert message.format(**places) in " ".join(shown.err.split()).replace("│ ", "")
    assert "Traceback" not in shown.err
    assert not shown.out
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "taken" / "file").read_text() == "mine"


def test_a_terminal_that_is_only_an_observer_gives_the_screen_back(monkeypatch):
    terminal = moco.console.Terminal()
    monkeypatch.setattr(type(terminal.console), "is_terminal", True)
    terminal.begin(0, 3, 4)
    for done in 1, 2:
        terminal.progress(done, {})
    assert terminal.bar.live.is_started
    terminal.progress(3, {})
    assert not terminal.bar.live.is_started


def test_a_second_trial_has_its_own_speed(capsys, monkeypatch):
    """The time between two trials, and the first one's, belong to neither's speed."""
    now = iter([0.0, 10.0, 1000.0, 1010.0])
    monkeypatch.setattr("moco.console.time.perf_counter", lambda: next(now))
    terminal = Terminal()
    for _ in range(2):
        terminal.begin(0, 100, 4)
        terminal.progress(1, {})
        terminal.progress(11, {"step": 11, "loss": 1.0})
    first, second = capsys.readouterr().err.splitlines()
    assert first == second
    assert "4 images/s" in first
