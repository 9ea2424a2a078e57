"""Files and folders that are there whole or not at all, claims, text that people wrote, hashes.

Whatever keeps a file from being written is a B4MError that names it, and what was there stays.
"""

import codecs
import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from b4m.errors import B4MError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)
_LONGEST_NAME = 255  # bytes
_LEAST_FREE = 2**16  # bytes; what is needed is not known before the work is done
_ENCODINGS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def check_output(path: Path, suffix: str = "", folder: bool = False) -> None:
    """Refuse a place that cannot be written, before the work whose result would go there.

    Args:
        path: file or folder to write; it need not exist, nor its parents.
        suffix: that its name must have, such as ".safetensors".
        folder: whether it is a folder.

    Raises:
        B4MError: for another suffix, a folder in the place of a file or the other way round, a
            file among the parents, or a place that may not be written.
    """
    if suffix and path.suffix != suffix:
        raise B4MError(f"{path} does not end in {suffix}; give it a name that does")
    place = Path(os.path.realpath(path))
    if os.path.lexists(place) and place.is_dir() != folder:
        kind, wanted = ("a file", "a folder") if folder else ("a folder", "a file")
        raise B4MError(f"{path} is {kind}, where {wanted} is to be written; give another place")
    parent = next(p for p in place.parents if os.path.lexists(p))
    if not parent.is_dir():
        raise B4MError(f"{path} cannot be written: {parent} is not a folder; give another place")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise B4MError(f"{path} cannot be written: the folder {parent} is read-only to you")
    if os.path.ismount(place):
        raise B4MError(f"{path} is a mounted volume, which cannot be replaced; give a folder in it")
    if max(len(os.fsencode(part)) for part in place.parts) > _LONGEST_NAME:
        raise B4MError(f"{path} has too long a name; give a shorter one")
    if shutil.disk_usage(parent).free < _LEAST_FREE:
        raise B4MError(f"{path} cannot be written: the disk of {parent} is full; make room")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write; it takes the place of `path` when the block ends well.

    A kill at any moment leaves the old file or the new one. The folder is made if needed. Of a
    symbolic link it is the file that the link points to that is replaced.

    Raises:
        B4MError: if the file cannot be written.
    """
    place, partial = Path(os.path.realpath(path)), None
    missing = [parent for parent in place.parents if not os.path.lexists(parent)]
    try:
        partial = _beside(place)
        yield partial
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, place)
    except OSError as error:
        raise _unwritten(path, error) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
        for parent in missing:  # a folder that was made for nothing goes again
            with suppress(OSError):
                parent.rmdir()


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; it takes the place of `path` when the block ends well.

    Raises:
        B4MError: if it cannot be written.
    """
    check_output(path, folder=True)
    place, partial = Path(os.path.realpath(path)), None
    try:
        partial = _beside(place, folder=True)
        yield partial
        partial.chmod(0o755)
        _exchange(partial, place)
        _log.info("wrote %s/", path)
    except OSError as error:
        raise _unwritten(path, error) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def claimed(file: Path) -> Iterator[bool]:
    """Whether this process alone holds a claim for the block's time; False if another one does.

    The claim ends with the process, however it ends.

    Args:
        file: a small file that stands for what is claimed; its folder is made if needed.
    """
    if fcntl is None:  # no such locks on this system: one process at a time
        yield True
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _beside(place: Path, folder: bool = False) -> Path:
    """A new file or folder on the same disk, with a name of its own however many write."""
    place.parent.mkdir(parents=True, exist_ok=True)
    prefix, suffix = f".{place.name[:100]}.", ".partial"
    if folder:
        return Path(tempfile.mkdtemp(dir=place.parent, prefix=prefix, suffix=suffix))
    descriptor, name = tempfile.mkstemp(dir=place.parent, prefix=prefix, suffix=suffix)
    os.close(descriptor)
    return Path(name)


def _exchange(new: Path, place: Path) -> None:
    """Put a folder in its place; the old one is out of the way until the new one is there."""
    old = new.with_suffix(".old")
    try:
        while True:
            with suppress(FileNotFoundError):
                os.replace(place, old)
            try:
                os.replace(new, place)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                # another writer was faster; its folder is the old one now
                shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        if old.exists() and not place.exists():
            os.replace(old, place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _unwritten(path: Path, error: OSError) -> B4MError:
    return B4MError(f"{path} cannot be written ({error.strerror or error}); what was there stays")


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write a file atomically and return its path."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
    _log.info("wrote %s", path)
    return path


def copy_whole(source: Path, target: Path) -> Path:
    """Copy a file atomically and return the copy's path."""
    with replacing(target) as partial:
        shutil.copyfile(source, partial)
    _log.info("copied %s to %s", source, target)
    return target


def read_text(path: Path) -> str:
    """Text that a person wrote: UTF-8, or UTF-16 or UTF-32 with their byte order mark.

    Other encodings cannot be told apart, and a wrong guess would be trained on in silence.

    Raises:
        B4MError: if the file cannot be read, or is in another encoding or no text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise B4MError(f"{path} cannot be read ({error.strerror})") from None
    mark = next((mark for mark in _ENCODINGS if content.startswith(mark)), b"")
    try:
        text = content.decode(_ENCODINGS.get(mark, "utf-8"))
    except UnicodeDecodeError as error:
        byte = f"byte {error.start + 1} is {error.object[error.start]:#04x}"
        raise B4MError(f"{path} is not UTF-8 text ({byte}); save it as UTF-8") from None
    if "\0" in text:
        raise B4MError(f"{path} is not text: it holds zero bytes; save it as UTF-8")
    return text


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """A JSON object of a file.

    Args:
        path: the file.
        advice: what to do if it is damaged.

    Raises:
        B4MError: if the file cannot be read or holds something else.
    """
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise B4MError(f"{path} is not JSON ({error}); {advice}") from None
    if not isinstance(value, dict):
        raise B4MError(f"{path} is not a JSON object; {advice}")
    return value


def sha256(file: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        B4MError: if the file cannot be read.
    """
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise B4MError(f"{file} cannot be read ({error.strerror})") from None
