"""Files that survive a kill, and several processes in one folder."""

import contextlib
import errno
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

ASIDE = ".tmp"
"""How the names of files end that are not whole yet."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems answer that cannot lock, such as Lustre and NFS as they are often mounted."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that, whatever happens, either the old or the new content is found whole.

    Several processes may write it, also of several machines: that of one of them stays.

    Raises:
        OSError: naming the file, for instance if the disk is full.
    """
    aside = path.with_name(f"{path.name}.{platform.node()}-{os.getpid()}{ASIDE}")
    try:
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and not error.filename:  # a full disk has none
            error.filename = str(path)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


@contextlib.contextmanager
def held(path: Path) -> Iterator[int | None]:
    """Hold a file against other processes; None if one of them has it.

    The hold goes with the process, however it ends. A file system without locks holds nothing; a sentence
    on standard error says so.

    Yields:
        A file descriptor: a child that inherits it keeps the hold when its parent dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no such locks on this system
            pass
        except BlockingIOError:
            yield None
            return
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            print(
                f"the file system of {path.parent} has no locks ({error.strerror}): two processes that write "
                "there would not notice each other, so start one only",
                file=sys.stderr,
            )
        yield file.fileno()
