"""The command `moco`: thin, and without torch until a command needs it.

Each command is a module of this package with a function `run`. Results go to standard output,
progress to standard error. Exit codes: 0 done, 1 the run failed, 2 the call was wrong and nothing
was begun, 75 saved and left before the end (the same command goes on), 130 interrupted, 141 nobody
reads the output any more.
"""

import importlib
import io
import os
import select
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from moco import __version__, heap
from moco.cluster import rank_and_size
from moco.data.unreadable import Unreadable

COMMANDS = {
    "doctor": ("IMAGES [--against TEST]", "what is in a folder of images, before training on it"),
    "plan": (
        "IMAGES [--budget 6h]",
        "a recipe for your images, machine and time, with reasons",
    ),
    "pretrain": (
        "RECIPE --data IMAGES --out RUN",
        "pre-train on unlabelled images; also --from plan.toml --out RUN, and --resume RUN",
    ),
    "report": ("RUN [RUN ...]", "one page about a run, or several overlaid, to open in a browser"),
    "knn": ("WEIGHTS [--data IMAGES]", "kNN accuracy of the features"),
    "linear": ("WEIGHTS [--data IMAGES]", "linear classification on frozen features"),
    "few-labels": ("WEIGHTS [--data IMAGES]", "accuracy with few labels, over repeated splits"),
    "finetune": ("WEIGHTS [--data IMAGES]", "train the whole network with labels"),
    "supervised": ("RUN [--data IMAGES]", "the supervised counterpart of a run"),
    "diagnose": ("RUN [--data IMAGES]", "how the features do, without labels"),
    "verdict": ("RUN [--data IMAGES]", "was it worth it? all of these, in one sentence"),
    "export": (
        "WEIGHTS --to LIBRARY",
        "files for torchvision, timm, Hugging Face, ONNX, detectron2",
    ),
    "embed": ("WEIGHTS [--data IMAGES] [--to parquet|npy|csv]", "features of images as a table"),
    "search": ("WEIGHTS IMAGE [--data IMAGES]", "the images most like one"),
    "fit": (
        "WEIGHTS LABELS.csv [--data IMAGES]",
        "from a few labels to a class for every image, and what to label next",
    ),
    "transfer": (
        "TASK --init RUN --data FOLDER --out RUN",
        "fine-tune on detection, segmentation, keypoints or dense pose; table RUN... compares starts",
    ),
    "ablate": (
        "STUDY --data IMAGES --out FOLDER",
        "a study of the papers, or your own: a table and a figure",
    ),
    "pack": ("FOLDER --out SHARDS", "images as tar shards, for sets of many millions"),
    "recipes": ("[NAME]", "recipes and their values"),
    "completion": ("bash|zsh|fish", "completion of commands and flags for a shell"),
}
"""What each command takes and does; the module `moco.cli.NAME` runs it."""
SHARED = ("pretrain", "transfer")
"""The commands whose work several processes share, under torchrun or srun."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit."""
    words = list(map(_from_home, sys.argv[1:] if arguments is None else arguments))
    heap.keep()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be what no terminal can show
    try:
        code = _run(words)
        sys.stdout.flush()
    except BrokenPipeError as error:
        if not _nobody_reads():
            code = _fail(error)
        else:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 141
    sys.exit(code)


def _from_home(word: str) -> str:
    """A word with the user's folder for ~, also in --out=~/runs, where most shells leave it: it would be made
    as a folder of that name."""
    flag, sign, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return flag + sign + os.path.expanduser(value)


def _nobody_reads() -> bool:
    """Whether standard output is a pipe whose other end is closed."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError):  # a notebook's, or a test's
        return False


def _run(words: list[str]) -> int:
    if words[:1] in (["--version"], ["-V"]):
        print(f"moco {__version__}")
        return 0
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] not in COMMANDS:
        return _refuse(f"there is no command {words[0]!r}; there are {', '.join(COMMANDS)}")
    rank, size = rank_and_size()
    if size > 1 and words[0] not in SHARED:
        return (
            0
            if rank
            else _refuse(
                f"moco {words[0]} works in one process, got {size}: start it without torchrun or srun; only "
                f"{' and '.join(f'moco {name}' for name in SHARED)} are shared among several"
            )
        )
    try:
        return importlib.import_module(f"moco.cli.{words[0].replace('-', '_')}").run(words[1:])
    except BrokenPipeError:
        raise
    except (ValueError, FileNotFoundError, FileExistsError, MemoryError, ModuleNotFoundError) as error:
        return _refuse(str(error))
    except (FloatingPointError, ConnectionError, TimeoutError, Unreadable) as error:
        return _fail(error)
    except Exception as error:
        from moco.batch import TooManyUnreadable

        # a disk, a folder where a file is wanted; neither is the fault of any code
        outside = isinstance(error, OSError) or isinstance(error.__cause__, OSError)
        if not outside and not isinstance(error, TooManyUnreadable):
            traceback.print_exc()
        return _fail(error)
    except KeyboardInterrupt:
        print(
            "moco: interrupted; what was kept stays, and the same command goes on from there", file=sys.stderr
        )
        return 130


def _fail(error: Exception) -> int:
    print(f"moco: the run failed: {error}", file=sys.stderr)
    return 1


def _help() -> str:
    commands = "".join(f"  moco {name} {takes}\n      {does}\n" for name, (takes, does) in COMMANDS.items())
    return (
        f"moco: Momentum Contrast for unsupervised visual representation learning\n\n{commands}\n"
        "WEIGHTS is a run, a backbone.safetensors, or a checkpoint of the released code, lightly or\n"
        "solo-learn. Each command has --help and --json. A first run needs no images:\n\n"
        "  moco pretrain demo --out runs/demo"
    )


def _refuse(message: str) -> int:
    print(f"moco: {message}", file=sys.stderr)
    return 2
