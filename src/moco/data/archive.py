"""Images in a .zip or .tar, read in place: nothing is unpacked onto the disk."""

import hashlib
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from moco.data.encoded import EncodedSource, limited
from moco.data.form import Form
from moco.data.reading import Reading
from moco.data.scan import EXTENSIONS
from moco.data.source import unknown_class

_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)
"""What reading a member of a .zip raises that is damaged, or encrypted, or compressed in an unknown way."""


class Member(NamedTuple):
    """A stored file of an archive: its name, and where its bytes lie if they are not compressed.

    Attributes:
        path: its name with forward slashes, without the folder that holds all images, where one does.
    """

    name: str
    offset: int
    size: int
    path: str

    @property
    def shown(self) -> str:
        """What messages, tables and lists call it: `tar -cf x.tar .` begins every name with "./"."""
        return self.name.removeprefix("./")


class ArchiveSource(EncodedSource):
    """The images in a .zip or an uncompressed .tar, read in place; folders are classes as on a disk.

    Args:
        path: of the archive.
        members: of it to take.
        name: what to call it.
        prefix: of the paths, in which it is not looked for classes.
        classes: the classes to number by; None finds them.
        reading: how files become pixels.
        form: of the pixels; None finds it.

    Raises:
        FileNotFoundError: if no image is in it.
        ValueError: if it is no such archive.
    """

    def __init__(
        self,
        path: Path,
        members: Sequence[Member],
        *,
        name: str,
        prefix: str = "",
        classes: Sequence[str] = (),
        reading: Reading | None = None,
        form: Form | None = None,
    ):
        self.path, self.members, self.name, self.reading = path, list(members), name, reading or Reading()
        if not self.members:
            raise FileNotFoundError(f"no image in {path} (looked for {', '.join(EXTENSIONS)})")
        self._zip = zipfile.ZipFile(path) if _is_zip(path) else None
        self.classes, self.labels = list(classes), None
        tops = [member.path.removeprefix(prefix).rpartition("/")[0].partition("/")[0] for member in members]
        if "" not in tops and (classes or len(set(tops)) > 1):
            self.classes = self.classes or sorted(set(tops))
            if unknown := sorted(set(tops) - set(self.classes)):
                raise unknown_class(f"{path}/{prefix}{unknown[0]}", self.classes)
            number = {folder: i for i, folder in enumerate(self.classes)}
            self.labels = torch.tensor([number[top] for top in tops])
        self.take_form(form or self.sniff_form())

    def __len__(self) -> int:
        return len(self.members)

    def content(self, index: int) -> bytes:
        member = self.members[index]
        if self._zip is not None:
            try:
                with self._zip.open(member.name) as file:
                    return limited(file, self.reading)  # the size it states is only a claim
            except _DAMAGED as error:
                raise OSError(str(error) or type(error).__name__) from error
        with open(self.path, "rb") as file:
            return os.pread(file.fileno(), member.size, member.offset)

    def sample_name(self, index: int) -> str:
        return self.members[index].shown

    def fingerprint(self) -> str:
        names = "\0".join(f"{member.name}\0{member.size}" for member in self.members)
        return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:16]


def _is_zip(path: Path) -> bool:
    """Whether a file is a .zip, and no .tar at whose end one lies: a .zip is known by its end."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        tarfile.open(path, "r:").close()
    except tarfile.TarError:
        return True
    return False


def members(path: Path) -> list[Member]:
    """The image files in an archive, in the order of their names.

    A folder that holds all of them, as in `tar -cf photos.tar photos`, is no part of their paths. Backslashes
    become forward slashes there: some programs of Windows part the folders of a .zip by them.

    Raises:
        ValueError: if it is neither a .zip nor an uncompressed .tar.
    """
    found = []
    try:
        if _is_zip(path):
            with zipfile.ZipFile(path) as archive:
                found = [
                    Member(m.filename, 0, m.file_size, m.filename.replace("\\", "/"))
                    for m in archive.infolist()
                    if not m.is_dir()
                ]
        else:
            with tarfile.open(path, "r:") as archive:  # links and devices are no files
                found = [Member(m.name, m.offset_data, m.size, m.name) for m in archive if m.isreg()]
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(
            f"{path} must be a .zip or an uncompressed .tar, got an unreadable file ({error}); "
            "unpack a .tar.gz first, its members cannot be read in place"
        ) from None
    images = sorted(
        member
        for member in found
        if member.name.lower().endswith(EXTENSIONS)
        and not any(part.startswith(".") and part not in (".", "..") for part in member.path.split("/"))
    )
    parts = [[part for part in image.path.split("/") if part not in ("", ".")] for image in images]
    around = int(len({part[0] for part in parts}) == 1 and all(len(part) > 1 for part in parts))
    return [image._replace(path="/".join(part[around:])) for image, part in zip(images, parts, strict=True)]
