"""From what a user writes after `--data` to a source."""

import os
from collections.abc import Iterable
from pathlib import Path

from moco.data.archive import ArchiveSource, members
from moco.data.arrays import open_arrays, open_digits, open_packed_cifar, open_torchvision
from moco.data.encoded import FolderSource
from moco.data.huggingface import open_huggingface
from moco.data.manifest import SUFFIXES, open_manifest
from moco.data.procedural import procedural
from moco.data.reading import Reading
from moco.data.shard_table import has_shards, tar_files
from moco.data.shards import ShardSource
from moco.data.source import ArraySource, DatasetSource, Source
from moco.words import some

EMBEDDED = ("procedural", "digits")
PROCEDURAL_IMAGES = {"train": 6000, "test": 2000}
_TEST_FOLDERS = ("test", "val", "valid", "validation")
_TORCHVISION_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


def locate(spec: str) -> str:
    """What a specification stands for on this machine: files by their absolute path.

    A relative path is looked for here and then under the folder $MOCO_DATA, and so is "cifar10" or
    "cifar100" as torchvision stores them.

    Raises:
        ValueError: if it is empty, as where a shell variable is not set: that would be this folder.
    """
    if not spec:
        raise ValueError("data must name images, got an empty word; for the folder you are in write .")
    if spec in EMBEDDED:
        return spec
    if spec.startswith("torchvision:"):
        name, path = _of_torchvision(spec)
        return f"torchvision:{name}:{path.resolve()}" if path.exists() else spec
    if spec.startswith("hf:"):
        path = Path(spec[3:]).expanduser()
        return f"hf:{path.resolve()}" if path.exists() else spec
    shelf = Path(os.environ.get("MOCO_DATA", "data")).expanduser()
    for path in Path(spec).expanduser(), shelf / spec:
        if path.exists():
            return str(path.resolve())
    if (shelf / _TORCHVISION_FOLDERS.get(spec, "nothing")).is_dir():
        return str(shelf.resolve())
    return spec


def open_source(
    spec: str,
    split: str = "train",
    *,
    reading: Reading | None = None,
    quarantine: frozenset[str] = frozenset(),
) -> Source | None:
    """The training or test images that a specification names; None if it has no test images.

    Args:
        spec: one of
            "procedural" or "digits" (no files needed; digits needs scikit-learn);
            a folder of images, with or without class folders, with or without train/ and test/
            (or val/) below it, in capitals or not, or the same in a .zip or uncompressed .tar, which is
            read in place;
            a folder of tar shards, as `moco pack` or others write them, or train/ and test/ of them;
            a list of paths (.txt), or a .csv, .tsv or .parquet with a column path and, as wanted,
            label, group and split;
            a folder holding CIFAR-10 or CIFAR-100 as torchvision stores it, or as packed .npz;
            an .npz with arrays images, labels, groups, test_images, test_labels (all but the first
            optional) or an .npy with images: uint8, uint16 or float32, (N, H, W) or
            (N, H, W, channels);
            "hf:PATH" for a data set of Hugging Face saved to disk, or "hf:NAME";
            "torchvision:NAME:ROOT" for another torchvision data set present under ROOT.
        split: "train" or "test".
        reading: how files become pixels.
        quarantine: images to leave out, as `sample_name` names them.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if it is there but not of a form listed above, or there are images to leave out of
            a set that has no files, or an array is of other bits or channels than are asked for.
    """
    reading = reading or Reading()
    source = _open(spec, split, reading, quarantine)
    if quarantine and isinstance(source, ArraySource | DatasetSource):
        raise ValueError(
            f"a quarantine list names files, the images of {source.name} are none; leave it away, and raise "
            "--reading.budget if some cannot be read"
        )
    if isinstance(source, ArraySource):
        _refuse_other_form(source, reading)
    return source


def _refuse_other_form(source: ArraySource, reading: Reading) -> None:
    """Refuse an array where other bits or channels are asked for: it does not say which value is white."""
    have = str(source.dtype).removeprefix("torch.")
    if reading.bits == 8 and have != "uint8":
        raise ValueError(
            f"{source.name} has {have} pixels where 8 bits are asked for (--reading.bits 8, or weights that "
            "were trained on uint8); files are scaled, but an array does not say which value is white: scale "
            "it to uint8 and save that"
        )
    if reading.channels not in (None, source.channels):
        raise ValueError(
            f"{source.name} has images of {some(source.channels, 'channel')} where {reading.channels} are "
            "asked for (reading.channels); only files are converted: save an array of as many"
        )


def _open(spec: str, split: str, reading: Reading, quarantine: frozenset[str]) -> Source | None:
    if spec == "procedural":
        return procedural(PROCEDURAL_IMAGES[split], split=split)
    if spec == "digits":
        return open_digits(split)
    if spec.startswith("hf:"):
        return open_huggingface(spec[3:], split, reading=reading, quarantine=quarantine)
    if spec.startswith("torchvision:"):
        name, root = _of_torchvision(spec)
        return open_torchvision(name, str(root), split, reading)
    path = Path(locate(spec))
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {spec}, here or under $MOCO_DATA; --data takes a folder, a .zip or .tar, a list or "
            "table of paths, an .npz or .npy file, hf:NAME, procedural or digits"
        )
    if path.is_file():
        return _file(path, split, reading, quarantine)
    if (path / "train_1.npz").exists():
        return open_packed_cifar(path, split)
    for name, folder in ("CIFAR10", "cifar-10-batches-py"), ("CIFAR100", "cifar-100-python"):
        if (path / folder).is_dir():
            return open_torchvision(name, str(path), split, reading)
    parts = {} if has_shards(path) else parts_of(path)
    if "train" not in parts:
        return None if split == "test" else _images(path, str(path), reading, quarantine)
    part = parts["train"]
    train = _images(path / part, f"{spec} ({part})", reading, quarantine, part)
    with os.scandir(path) as entries:
        train.notes += _tars(path) + _others(path, parts, (e.name for e in entries if e.is_dir()))
    if split == "train":
        return train
    found = [parts[word] for word in _TEST_FOLDERS if word in parts]
    if not found:
        return None
    return _images(path / found[0], f"{spec} ({found[0]})", reading, quarantine, found[0], train)


def _of_torchvision(spec: str) -> tuple[str, Path]:
    """Name and folder of a data set of torchvision."""
    _, name, root = (*spec.split(":", 2), "")[:3]
    return name, Path(root or "data").expanduser()


def parts_of(folder: Path) -> dict[str, str]:
    """From train, test and so on to what these parts of a set are called in its folder, in whatever case."""
    return _called(name for name in os.listdir(folder) if _is_part(name) and (folder / name).is_dir())


def _called(folders: Iterable[str]) -> dict[str, str]:
    """From train, test and so on to the names of their folders: in whatever case, the exact one first."""
    found: dict[str, str] = {}
    for name in sorted(filter(_is_part, folders), key=lambda name: (name != name.lower(), name)):
        found.setdefault(name.lower(), name)
    return found


def _is_part(name: str) -> bool:
    return name.lower() in ("train", *_TEST_FOLDERS)


def _others(path: Path, parts: dict[str, str], folders: Iterable[str]) -> tuple[str, ...]:
    """A sentence about the folders beside train/ that are no part of the set, if there are any."""
    names = sorted(
        name
        for name in folders
        if name != parts["train"] and name.lower() not in _TEST_FOLDERS and not name.startswith(".")
    )
    if not names:
        return ()
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return (
        f"{len(names):,} other folder{'s' * (len(names) > 1)} in {path} left out ({shown}): where there is a "
        f"folder {parts['train']}, only it and test (or val) are read; rename it if it is a class",
    )


def _images(
    folder: Path,
    name: str,
    reading: Reading,
    quarantine: frozenset[str],
    part: str = "",
    train: ShardSource | FolderSource | None = None,
) -> ShardSource | FolderSource:
    """The shards or image files of a folder, which may be a part of a set; test images have the classes and
    form of the training images."""
    classes, form = (train.classes, train.form) if train is not None else ((), None)
    if has_shards(folder):
        return ShardSource(
            folder, name=name, classes=classes, reading=reading, form=form, quarantine=quarantine, part=part
        )
    quarantine = _below(quarantine, part) if part else quarantine
    try:
        source = FolderSource(
            folder, name=name, classes=classes, reading=reading, form=form, quarantine=quarantine
        )
    except FileNotFoundError as error:
        raise FileNotFoundError("; ".join([str(error), *_tars(folder)])) from None
    source.notes += _tars(folder)
    return source


def _tars(folder: Path) -> tuple[str, ...]:
    """A sentence about the tar files of a folder that are no shards, if there are any."""
    names = [path.name for path in tar_files(folder)]
    if not names:
        return ()
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return (
        f"{len(names):,} tar file{'s' * (len(names) > 1)} in {folder} left out ({shown}): shards must be in "
        "a folder of their own, without images or other folders",
    )


def _below(quarantine: frozenset[str], folder: str) -> frozenset[str]:
    """A list as it applies to a folder below the one it was made for; a run's own names are of train/."""
    inside = {name.removeprefix(folder + "/") for name in quarantine if name.startswith(folder + "/")}
    return frozenset(inside) | (quarantine if folder.lower() == "train" else frozenset())


def _file(path: Path, split: str, reading: Reading, quarantine: frozenset[str]) -> Source | None:
    ending = path.suffix.lower()
    if ending in (".npy", ".npz"):
        return open_arrays(path, split)
    if ending in (".zip", ".tar"):
        return _archive(path, split, reading, quarantine)
    if ending in SUFFIXES:
        form, classes = None, []
        if split == "test":
            train = open_manifest(path, "train", reading=reading, quarantine=quarantine)
            assert train is not None
            form, classes = train.form, train.classes
        return open_manifest(path, split, reading=reading, quarantine=quarantine, form=form, classes=classes)
    raise ValueError(
        f"{path} is a file but none of .npz .npy .zip .tar {' '.join(SUFFIXES)}; "
        "give its folder for image files"
    )


def _archive(path: Path, split: str, reading: Reading, quarantine: frozenset[str]) -> Source | None:
    """An archive's images; of folders train/ and test/ only these are read."""
    everything = members(path)
    tops = {member.path.split("/", 1)[0] for member in everything if "/" in member.path}
    parts = _called(tops)
    tests = [parts[word] for word in _TEST_FOLDERS if word in parts]
    listed = {name.removeprefix("./") for name in quarantine}

    def part(folder: str, like: ArchiveSource | None = None) -> ArchiveSource:
        prefix = f"{folder}/" if folder else ""
        there = [member for member in everything if member.path.startswith(prefix)]
        chosen = [member for member in there if member.shown not in listed]
        source = ArchiveSource(
            path, chosen, name=f"{path} ({folder})" if folder else str(path), prefix=prefix, reading=reading,
            form=like.form if like else None, classes=like.classes if like else (),
        )  # fmt: skip
        source.left_out = len(there) - len(chosen)
        return source

    if split == "train":
        train = part(parts.get("train", ""))
        train.notes += _others(path, parts, tops) if "train" in parts else ()
        return train
    return part(tests[0], part(parts["train"])) if "train" in parts and tests else None
