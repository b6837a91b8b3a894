"""Media are found by hash, checked when read, and never outside the data set's folder unless allowed."""

from __future__ import annotations

import hashlib
import http.server
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyalign.errors import MediaError
from polyalign.records.schema import MediaRef
from polyalign.records.store import BadReference, JoinedMedia, MediaStore, MemoryMedia, reference_to

DATA = b"eighteen bytes say"


def ref(data: bytes = DATA, **changes: object) -> MediaRef:
    return reference_to(data, "scent", "scent/raw").model_copy(update=changes)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set's folder, with a secret beside it that no reference may reach."""
    (tmp_path / "secret.raw").write_bytes(DATA)
    folder = tmp_path / "set"
    folder.mkdir()
    return folder


def test_add_puts_the_medium_under_its_hash_and_read_returns_it(root: Path) -> None:
    store = MediaStore(root)
    added = store.add(DATA, "scent", "scent/raw")
    name = hashlib.sha256(DATA).hexdigest() + ".raw"
    assert added == ref()
    assert [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()] == [f"media/{name}"]
    assert store.read(added) == DATA
    assert store.path(added) == root / "media" / name


def test_adding_twice_writes_once(root: Path) -> None:
    store = MediaStore(root)
    path = store.path(store.add(DATA, "scent", "scent/raw"))
    before = path.stat()
    store.add(DATA, "scent", "scent/raw")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_medium_cut_short_by_a_crash_is_written_again(root: Path) -> None:
    store = MediaStore(root)
    added = store.add(DATA, "scent", "scent/raw")
    (root / "media" / store.path(added).name).write_bytes(DATA[:5])
    store.add(DATA, "scent", "scent/raw")
    assert store.read(added) == DATA


def test_uri_is_relative_to_the_root(root: Path) -> None:
    (root / "a").mkdir()
    (root / "a" / "b.raw").write_bytes(DATA)
    assert MediaStore(root).read(ref(uri="a/b.raw")) == DATA


@pytest.mark.parametrize(
    "uri, kind, says",
    [
        ("../secret.raw", "outside", "climbs out by '..'"),
        ("a/../../secret.raw", "outside", "climbs out by '..'"),
        ("a\\..\\..\\secret.raw", "outside", "climbs out by '..'"),
        ("{parent}/secret.raw", "outside", "is absolute"),
        ("C:\\secret.raw", "outside", "is absolute"),
        ("\\\\server\\share\\secret.raw", "outside", "is absolute"),
        ("link.raw", "outside", "is a link to"),
        ("folder/secret.raw", "outside", "is a link to"),
        ("https://example.org/secret.raw", "url", "is on the network"),
        ("HTTP://example.org/secret.raw", "url", "is on the network"),
        ("file:///etc/passwd", "url", "is a file: address"),
        ("data:text/plain,x", "url", "is a data: address"),
        ("nothing.raw", "missing", "does not exist"),
        (".", "missing", "no regular file"),
        ("", "missing", "is not a path"),
        ("a\0b", "missing", "is not a path"),
    ],
)
def test_references_that_leave_the_root_or_lead_nowhere_are_refused(root: Path, uri: str, kind: str, says: str) -> None:
    (root / "link.raw").symlink_to(root.parent / "secret.raw")
    (root / "folder").symlink_to(root.parent)
    reference = ref(uri=uri.format(parent=root.parent) if "{parent}" in uri else uri)
    for call in (MediaStore(root).read, MediaStore(root).path, MediaStore(root).check):
        with pytest.raises(BadReference, match=says) as caught:
            call(reference)
        assert (caught.value.kind, caught.value.field) == (kind, "uri")


def test_a_store_folder_that_is_a_link_out_is_refused(root: Path) -> None:
    outside = MediaStore(root.parent / "other")
    added = outside.add(DATA, "scent", "scent/raw")
    (root / "media").symlink_to(outside.root / "media")
    with pytest.raises(BadReference, match="is a link to") as caught:
        MediaStore(root).read(added)
    assert caught.value.field == "sha256"
    assert MediaStore(root, allow_outside=True).read(added) == DATA


def test_a_link_within_the_root_and_a_root_that_is_itself_a_link_are_fine(root: Path) -> None:
    (root / "real.raw").write_bytes(DATA)
    (root / "link.raw").symlink_to(root / "real.raw")
    (root.parent / "alias").symlink_to(root)
    assert MediaStore(root.parent / "alias").read(ref(uri="link.raw")) == DATA


@pytest.mark.parametrize("uri", ["../secret.raw", "{parent}/secret.raw", "link.raw"])
def test_allow_outside_opens_them(root: Path, uri: str) -> None:
    (root / "link.raw").symlink_to(root.parent / "secret.raw")
    reference = ref(uri=uri.format(parent=root.parent))
    assert MediaStore(root, allow_outside=True).read(reference) == DATA


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_refused_instead_of_blocking(root: Path) -> None:
    os.mkfifo(root / "pipe.raw")
    with pytest.raises(BadReference, match="no regular file"):
        MediaStore(root).read(ref(uri="pipe.raw"))


def test_wrong_length_and_wrong_hash_are_told_apart(root: Path) -> None:
    store = MediaStore(root)
    (root / "short.raw").write_bytes(DATA[:-1])
    (root / "other.raw").write_bytes(DATA[::-1])
    with pytest.raises(BadReference, match=r"short.raw holds 17 bytes, the record says 18") as caught:
        store.read(ref(uri="short.raw"))
    assert (caught.value.kind, caught.value.field) == ("wrong length", "length")
    with pytest.raises(BadReference, match=r"other.raw hashes to") as caught:
        store.read(ref(uri="other.raw"))
    assert (caught.value.kind, caught.value.field) == ("wrong hash", "sha256")


def test_media_past_the_size_limit_are_refused_before_they_are_read(root: Path) -> None:
    store = MediaStore(root, max_bytes=17)
    with pytest.raises(BadReference, match="18 bytes, more than the limit of 17"):
        store.add(DATA, "scent", "scent/raw")
    with pytest.raises(BadReference, match="18 bytes, more than the limit of 17"):
        store.read(ref(uri="nothing.raw"))


@pytest.fixture
def served() -> Iterator[tuple[str, list[str]]]:
    """A server on this machine that gives `DATA` at any address, and the list of what was asked."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(DATA)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_allowed_url_is_fetched_once_verified_and_kept(root: Path, served: tuple[str, list[str]]) -> None:
    address, asked = served
    store = MediaStore(root, allow_urls=True)
    reference = ref(uri=f"{address}/x.raw")
    store.check(reference)
    assert asked == []
    assert store.read(reference) == store.read(reference) == DATA
    assert asked == ["/x.raw"]
    with pytest.raises(BadReference, match="hashes to"):
        store.read(ref(DATA[::-1], uri=f"{address}/y.raw"))
    with pytest.raises(BadReference, match="holds 6 bytes, the record says 5"):
        store.read(ref(DATA[:5], uri=f"{address}/z.raw"))


def test_stores_and_their_errors_survive_pickling(root: Path) -> None:
    store = pickle.loads(pickle.dumps(MediaStore(root)))
    assert store.read(store.add(DATA, "scent", "scent/raw")) == DATA
    error = pickle.loads(pickle.dumps(BadReference("gone", "uri", "missing")))
    assert (str(error), error.field, error.kind) == ("gone", "uri", "missing")
    assert isinstance(error, MediaError)


def test_memory_media_read_spill_and_pickle() -> None:
    memory = MemoryMedia()
    added = memory.add(DATA, "scent", "scent/raw")
    path = memory.path(added)
    assert path.read_bytes() == DATA
    copy = pickle.loads(pickle.dumps(memory))
    assert copy.read(added) == DATA
    assert copy.path(added) != path
    with pytest.raises(BadReference, match="not held in memory"):
        memory.read(ref(b"other"))


def test_joined_media_read_from_whoever_has_it_but_hide_no_damage(root: Path) -> None:
    first, second = MemoryMedia(), MediaStore(root)
    left, right = first.add(b"left", "scent", "scent/raw"), second.add(b"right", "scent", "scent/raw")
    joined = JoinedMedia(first, second)
    assert (joined.read(left), joined.read(right)) == (b"left", b"right")
    assert joined.path(right) == second.path(right)
    damaged = JoinedMedia(second, first)
    second.path(right).write_bytes(b"thgir")
    with pytest.raises(BadReference, match="hashes to"):
        damaged.read(right)
