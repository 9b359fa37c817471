"""The index of a folder: found once, kept, and up to date."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from moco.data import index as index_module
from moco.data import scan as scan_module
from moco.data.encoded import FolderSource
from moco.data.index import open_index
from moco.data.procedural import procedural
from moco.data.scan import scan

PIXELS = procedural(12, size=16).pixels


def many(images: Path, root: Path, folders: int = 6, files: int = 40) -> Path:
    content = next(images.rglob("*.png")).read_bytes()
    for f in range(folders):
        for i in range(files):
            path = root / "many" / f"f{f}" / "deep" / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            os.utime(path.parent, (1e9, 1e9))
    return root / "many"


def slow_paths(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*.png"))


def test_the_index_is_kept_and_follows_changes(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_module, "KEPT_FROM", 100)
    monkeypatch.setattr(scan_module, "_SETTLED", 0)
    root = many(folder, tmp_path)
    first = open_index(root)
    assert [first.path(i) for i in range(len(first))] == slow_paths(root)

    def refuse(*_):
        raise AssertionError("scanned again")

    with monkeypatch.context() as patch:
        patch.setattr(index_module, "scan", refuse)
        again = open_index(root)
    assert isinstance(again.names, np.memmap)
    assert again.fingerprint() == first.fingerprint()
    assert again.forms == first.forms == {(3, 8, False): 240}

    (root / "f2" / "deep" / "000.png").unlink()
    (root / "f3" / "deep" / "new.png").write_bytes((root / "f1" / "deep" / "001.png").read_bytes())
    (root / "f9").mkdir()
    (root / "f9" / "x.png").write_bytes(b"")
    changed = open_index(root)
    assert [changed.path(i) for i in range(len(changed))] == slow_paths(root)
    assert changed.forms == {(3, 8, False): 240}  # one is empty
    assert changed.fingerprint() != first.fingerprint()
    for file in (tmp_path / "cache" / "moco").iterdir():
        file.write_bytes(file.read_bytes()[:-5])
    assert open_index(root).fingerprint() == changed.fingerprint()


def test_of_many_files_some_say_what_form_all_have(folder, tmp_path, monkeypatch):
    root = many(folder, tmp_path)
    (root / "f2" / "deep" / "005.png").write_bytes(b"")
    read = []
    headers = scan_module._header
    monkeypatch.setattr(scan_module, "_header", lambda path: read.append(path) or headers(path))
    whole = open_index(root)
    assert [os.path.relpath(path, root) for path in read] == slow_paths(root)
    assert whole.forms == {(3, 8, False): 239}
    read.clear()
    monkeypatch.setattr(index_module, "HEADERS", 24)
    some = open_index(root)
    assert [slow_paths(root).index(os.path.relpath(path, root)) for path in read] == [
        *np.linspace(0, 239, 24).astype(int)
    ]
    assert some.forms == {(3, 8, False): 24}
    larger = root / some.path(239)
    larger.write_bytes(larger.read_bytes() + b"more")
    assert open_index(root).fingerprint() != some.fingerprint()


def test_no_file_is_opened_or_asked_for_by_a_scan(folder, tmp_path, monkeypatch):
    root = many(folder, tmp_path, 4, 12)
    monkeypatch.setattr(os, "open", None)
    asked = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **how: asked.append(path) or stat(path, **how))
    found = scan(str(root), False)
    assert sum(len(f.ends) for f in found) == 48
    assert len(asked) == len(found) == 9  # folders


def test_names_in_any_encoding_are_found_and_read(tmp_path):
    content = io.BytesIO()
    Image.new("RGB", (9, 9)).save(content, "PNG")
    names = [b"\xff\xfe.png", "ä ö.PNG".encode(), b"z.png", b"Z.png", "\u65e5.png".encode()]
    for name in names:
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).write_bytes(content.getvalue())
    source = FolderSource(tmp_path)
    assert [os.fsencode(source.sample_name(i)) for i in range(5)] == sorted(names)
    assert all(source.read(i).shape == (3, 9, 9) for i in range(5))


def test_pipes_and_vanished_files_do_not_hang_the_scan(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    Image.new("RGB", (9, 9)).save(tmp_path / "x.png")
    index = open_index(tmp_path)
    assert (len(index), index.skipped) == (1, {"neither files nor folders": 1})
    assert len(FolderSource(tmp_path)) == 1
