"""Noticing that pictures and weights have changed."""

import os
import sqlite3

import numpy as np
import pytest
from preparing import config, fill

from glann.inputs import digests
from glann.inputs.digests import of_file, pictures


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The names of files whose content is read, as it happens."""
    names: list[bytes] = []
    content = digests._content

    def noted(path: bytes) -> str:
        names.append(path.split(b"/")[-1])
        return content(path)

    monkeypatch.setattr(digests, "_content", noted)
    return names


def test_every_change_of_names_and_contents_is_noticed_and_no_other(tmp_path, read):
    folder, memory = fill(tmp_path / "in", 12), tmp_path / "memory"

    def look():
        read.clear()
        return pictures(config("folder", folder), memory)

    first = look()
    assert first["files"] == 12 and len(read) == 12
    assert look() == first and read == []
    (folder / "003.png").touch()
    assert look() == first and read == [b"003.png"]
    different = [first]

    def noticed(*names):
        found = look()
        assert found not in different and read == [*names]
        different.append(found)

    content = (folder / "003.png").read_bytes()
    times = (folder / "003.png").stat()
    (folder / "003.png").write_bytes(content[:-1] + b"x")
    os.utime(folder / "003.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    noticed(b"003.png")  # same size, same time of modification
    (folder / "004.png").rename(folder / "x.png")
    noticed(b"x.png")
    (folder / "new.png").write_bytes(b"not an image")
    noticed(b"new.png")
    (folder / "below").mkdir()
    (folder / "below/one.png").write_bytes(content)
    noticed(b"one.png")
    (folder / "link.png").symlink_to("000.png")
    noticed(b"link.png")
    (folder / "001.png").unlink()
    noticed()
    (folder / "gone.png").symlink_to("nowhere.png")
    noticed()
    (folder / ".hidden").write_bytes(b"x")
    assert look() == different[-1]


def test_a_file_that_cannot_be_read_counts_with_the_reason(tmp_path, monkeypatch):
    folder, memory = fill(tmp_path / "in", 3), tmp_path / "memory"
    before = pictures(config("folder", folder), memory)
    (folder / "001.png").touch()

    def refuse(path: bytes) -> str:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(digests, "_content", refuse)
        assert pictures(config("folder", folder), memory) != before
    assert pictures(config("folder", folder), memory) == before


def damage_pages(memory):
    content = memory.read_bytes()
    memory.write_bytes(content[:4096] + b"x" * (len(content) - 4096))


def other_columns(memory):
    memory.unlink()
    with sqlite3.connect(memory) as connection:
        connection.execute("CREATE TABLE files (path BLOB, size INTEGER)")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda memory: memory.write_bytes(b"no database" * 1000),
        damage_pages,
        other_columns,
        lambda memory: memory.chmod(0o400),
        lambda memory: (memory.unlink(), memory.mkdir()),
    ],
    ids=["no database", "damaged pages", "other columns", "read-only", "a folder"],
)
def test_without_a_sound_memory_all_files_are_read_anew(tmp_path, spoil):
    folder, memory = fill(tmp_path / "in", 200), tmp_path / "memory"
    expected = pictures(config("folder", folder), memory)
    spoil(memory)
    assert pictures(config("folder", folder), memory) == expected
    (folder / "001.png").unlink()
    changed = pictures(config("folder", folder), memory)
    assert changed["files"] == 199 and changed["sha256"] != expected["sha256"]


def test_times_of_any_size_are_remembered(tmp_path, read):
    folder, memory = fill(tmp_path / "in", 2), tmp_path / "memory"
    os.utime(folder / "001.png", ns=(2**63, 2**63))
    one = pictures(config("folder", folder), memory)
    read.clear()
    assert pictures(config("folder", folder), memory) == one and read == []


def test_many_files_are_looked_up_in_parts(tmp_path, monkeypatch, read):
    folder, memory = fill(tmp_path / "in", 50), tmp_path / "memory"
    whole = pictures(config("folder", folder), memory)
    monkeypatch.setattr(digests, "AT_ONCE", 7)
    read.clear()
    assert pictures(config("folder", folder), memory) == whole and read == []


def test_arrays_and_weights_count_by_their_content(tmp_path, read):
    memory = tmp_path / "memory"
    np.save(tmp_path / "a.npy", np.zeros((4, 16, 16), np.uint8))
    np.save(tmp_path / "b.npy", np.zeros((4, 16, 16), np.uint8))
    one = pictures(config("npy", tmp_path / "a.npy"), memory)
    assert one == of_file(str(tmp_path / "b.npy"), memory) and one["files"] == 1
    read.clear()
    assert one == pictures(config("npy", tmp_path / "a.npy"), memory) and read == []
    np.save(tmp_path / "a.npy", np.ones((4, 16, 16), np.uint8))
    assert pictures(config("npy", tmp_path / "a.npy"), memory) != one


def test_what_is_not_there_and_what_needs_no_path(tmp_path):
    memory = tmp_path / "memory"
    assert pictures(config("folder", tmp_path / "nowhere"), memory) is None
    (tmp_path / "empty").mkdir()
    assert pictures(config("folder", tmp_path / "empty"), memory) is None
    assert of_file(str(tmp_path / "no.pth"), memory) is None
    assert pictures(config("mnist"), memory) == {} and of_file(None, memory) == {}
