"""Whether TensorBoard could be served is known before a run begins."""

import sys
from pathlib import Path

import pytest

from glann.errors import GlannError
from glann.runtime.tensorboard import check_tensorboard


def test_a_folder_that_can_be_made_is_fine_and_is_not_made(tmp_path: Path):
    check_tensorboard(tmp_path / "deep/deeper")
    assert not [*tmp_path.iterdir()]


def test_a_file_in_the_way_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    for folder in ("file", "file/deeper"):
        with pytest.raises(GlannError, match=r"^compute\.tensorboard: .*Not a directory\); name a folder"):
            check_tensorboard(tmp_path / folder)


def test_without_the_package_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(GlannError, match=r"^compute\.tensorboard: .* pip install tensorboard"):
        check_tensorboard(tmp_path)
