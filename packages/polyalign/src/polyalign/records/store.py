"""Media of one data set, found by content hash. References never leave the data set's root unless allowed."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import urllib.error
import urllib.request
from pathlib import Path, PureWindowsPath
from typing import Any

from polyalign.errors import MediaError
from polyalign.records.atomic import atomic_write
from polyalign.records.schema import MediaRef

MEDIA_FOLDER = "media"
MAX_BYTES = 512 * 1024 * 1024

_EXTENSIONS = {
    "image/jpeg": ".jpg",
    "audio/mpeg": ".mp3",
    "video/quicktime": ".mov",
    "video/x-matroska": ".mkv",
    "text/plain": ".txt",
    "application/octet-stream": ".bin",
}
# Two letters at least, so that a Windows drive is not taken for a scheme.
_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+):")


class BadReference(MediaError):
    """A `MediaRef` that cannot be opened. ``field`` names the part of it that is wrong, ``kind`` the defect in short."""

    def __init__(self, message: str, field: str, kind: str) -> None:
        super().__init__(message)
        self.field, self.kind = field, kind

    def __reduce__(self) -> tuple[Any, ...]:  # so that it survives the way back from a loader worker
        return type(self), (str(self), self.field, self.kind)


def media_name(sha256: str, mime: str) -> str:
    """Return the file name of a medium in a store: its hash, and the extension that its mime type implies."""
    subtype = mime.partition("/")[2].partition("+")[0].removeprefix("x-")
    return sha256 + _EXTENSIONS.get(mime, f".{subtype}")


def reference_to(data: bytes, modality: str, mime: str) -> MediaRef:
    """Return the reference that names these bytes."""
    return MediaRef(modality=modality, sha256=hashlib.sha256(data).hexdigest(), mime=mime, length=len(data))


def verified(data: bytes, ref: MediaRef, where: str) -> bytes:
    """Return ``data`` if its length and hash are those of ``ref``. Raises `BadReference`."""
    _check_length(len(data), ref, where)
    found = hashlib.sha256(data).hexdigest()
    if found != ref.sha256:
        raise BadReference(
            f"{where} hashes to {found[:12]}..., not to {ref.sha256[:12]}...: the file changed, or the record names another one",
            "sha256",
            "wrong hash",
        )
    return data


def _check_length(found: int, ref: MediaRef, where: str) -> None:
    if found != ref.length:
        raise BadReference(
            f"{where} holds {found} bytes, the record says {ref.length}: the file is cut short or was replaced",
            "length",
            "wrong length",
        )


class MediaStore:
    """Media in files: ``root/media/<sha256><ext>``, or at ``ref.uri`` relative to ``root``. Picklable.

    ``allow_outside`` lets a ``uri`` be absolute, climb out by ``..`` or pass through a symlink that points out;
    ``allow_urls`` fetches http(s) once, verifies the hash and keeps the bytes in the store. Both are refused by default.
    ``max_bytes`` caps the size of one medium.
    """

    def __init__(
        self, root: Path | str, *, allow_outside: bool = False, allow_urls: bool = False, max_bytes: int = MAX_BYTES
    ) -> None:
        self.root = Path(root).resolve()
        self.allow_outside, self.allow_urls, self.max_bytes = allow_outside, allow_urls, max_bytes

    def add(self, data: bytes, modality: str, mime: str) -> MediaRef:
        """Store the bytes under their hash and return the reference. Adding the same bytes again changes nothing."""
        ref = reference_to(data, modality, mime)
        self._check_size(ref.length, ref)
        self._write(ref, data)
        return ref

    def read(self, ref: MediaRef) -> bytes:
        """Return the bytes, with length and hash checked. Raises `BadReference`."""
        path = self.path(ref)
        return verified(path.read_bytes(), ref, self._shown(path))

    def path(self, ref: MediaRef) -> Path:
        """Return the file of a medium: inside the root, there, and of the stated length. Its hash is not computed."""
        self._check_size(ref.length, ref)
        if ref.uri is not None and (scheme := _SCHEME.match(ref.uri)):
            return self._fetched(ref, scheme.group(1).lower())
        field = "sha256" if ref.uri is None else "uri"
        path = self._stored(ref) if ref.uri is None else self._inside(ref.uri)
        resolved = path.resolve()
        if not self.allow_outside and not resolved.is_relative_to(self.root):
            raise BadReference(
                f"{self._shown(path)} is a link to {resolved}, outside the data set's folder; copy the file in, "
                "or set allow_outside",
                field,
                "outside",
            )
        if not resolved.is_file():
            raise BadReference(
                f"{self._shown(path)} does not exist (or is no regular file)",
                "uri" if ref.uri is not None else "sha256",
                "missing",
            )
        _check_length(resolved.stat().st_size, ref, self._shown(path))
        return resolved

    def check(self, ref: MediaRef) -> None:
        """Raise `BadReference` if the medium is not there. Nothing is hashed or fetched."""
        fetched_later = self.allow_urls and ref.uri is not None and ref.uri.lower().startswith(("http://", "https://"))
        if not fetched_later:
            self.path(ref)

    def _stored(self, ref: MediaRef) -> Path:
        return self.root / MEDIA_FOLDER / media_name(ref.sha256, ref.mime)

    def _inside(self, uri: str) -> Path:
        if "\0" in uri or not uri:
            raise BadReference(f"{uri!r} is not a path", "uri", "missing")
        windows = PureWindowsPath(uri)
        if self.allow_outside:
            return self.root / uri
        if uri.startswith("/") or windows.drive or windows.root:
            raise BadReference(
                f"{uri!r} is absolute; give a path relative to the data set's folder, or set allow_outside",
                "uri",
                "outside",
            )
        if ".." in windows.parts:
            raise BadReference(
                f"{uri!r} climbs out by '..'; give a path below the data set's folder, or set allow_outside",
                "uri",
                "outside",
            )
        return self.root / uri

    def _fetched(self, ref: MediaRef, scheme: str) -> Path:
        uri = str(ref.uri)
        if scheme not in ("http", "https"):
            raise BadReference(f"{uri!r} is a {scheme}: address; only files, and http(s) where allowed, are read", "uri", "url")
        if not self.allow_urls:
            raise BadReference(
                f"{uri!r} is on the network; download it into the data set's folder, or set allow_urls", "uri", "url"
            )
        path = self._stored(ref)
        if not path.is_file():
            try:
                with urllib.request.urlopen(uri, timeout=30) as response:
                    # One byte more than stated is enough to see that it is too long.
                    data = response.read(ref.length + 1)
            except (urllib.error.URLError, OSError, ValueError) as error:
                raise BadReference(f"{uri!r} could not be fetched: {error}", "uri", "missing") from error
            self._write(ref, verified(data, ref, uri))
        return path

    def _write(self, ref: MediaRef, data: bytes) -> None:
        path = self._stored(ref)
        if not (path.is_file() and path.stat().st_size == ref.length):
            with atomic_write(path) as file:
                file.write(data)

    def _check_size(self, length: int, ref: MediaRef) -> None:
        if length > self.max_bytes:
            raise BadReference(
                f"medium {ref.sha256[:12]}... has {length} bytes, more than the limit of {self.max_bytes} (max_bytes)",
                "length",
                "too large",
            )

    def _shown(self, path: Path) -> str:
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)


class SpillingMedia:
    """Base of sources that hold bytes, not files: `path` writes a medium to a folder that lives as long as the source."""

    def __init__(self) -> None:
        # By process: a forked worker must not share, and at its end remove, its parent's folder.
        self._spills: dict[int, tempfile.TemporaryDirectory[str]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_spills": {}}

    def read(self, ref: MediaRef) -> bytes:
        raise NotImplementedError

    def path(self, ref: MediaRef) -> Path:
        """Return a temporary file that holds the medium."""
        if os.getpid() not in self._spills:
            self._spills[os.getpid()] = tempfile.TemporaryDirectory(prefix="polyalign-media-")
        path = Path(self._spills[os.getpid()].name) / media_name(ref.sha256, ref.mime)
        if not path.is_file():
            data = self.read(ref)
            with atomic_write(path) as file:
                file.write(data)
        return path


class MemoryMedia(SpillingMedia):
    """Media held in memory, by hash. For fixtures, tests and records made on the fly."""

    def __init__(self) -> None:
        super().__init__()
        self._data: dict[str, bytes] = {}

    def add(self, data: bytes, modality: str, mime: str) -> MediaRef:
        """Keep the bytes and return the reference."""
        ref = reference_to(data, modality, mime)
        self._data[ref.sha256] = data
        return ref

    def read(self, ref: MediaRef) -> bytes:
        """Return the bytes. Raises `BadReference` if they were never added."""
        self.check(ref)
        return verified(self._data[ref.sha256], ref, f"medium {ref.sha256[:12]}...")

    def check(self, ref: MediaRef) -> None:
        """Raise `BadReference` if the medium was never added."""
        if ref.sha256 not in self._data:
            raise BadReference(f"medium {ref.sha256[:12]}... is not held in memory; add it first", "sha256", "missing")


class JoinedMedia:
    """Several sources as one: a medium is read from the first that has it."""

    def __init__(self, *sources: Any) -> None:
        self.sources = sources

    def read(self, ref: MediaRef) -> bytes:
        """Return the bytes. Raises the last source's `BadReference` if none has them."""
        return bytes(self._first("read", ref))

    def path(self, ref: MediaRef) -> Path:
        """Return the file. Raises the last source's `BadReference` if none has it."""
        return Path(self._first("path", ref))

    def _first(self, method: str, ref: MediaRef) -> Any:
        for source in self.sources[:-1]:
            try:
                return getattr(source, method)(ref)
            except BadReference as error:
                if error.kind != "missing":
                    raise
        return getattr(self.sources[-1], method)(ref)
