"""Folders as people have them: broken files, odd names, nothing in them."""

import os
import random

import numpy as np
import pytest
from PIL import Image
from preparing import config, fill, greys, run, stop


def spoil(folder):
    """Put one bad file of every kind into a folder, and return what should be said of each."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))
    for suffix in ("jpg", "png", "gif", "webp", "tif"):
        noise.save(folder / f"cut.{suffix}")
        content = (folder / f"cut.{suffix}").read_bytes()
        (folder / f"cut.{suffix}").write_bytes(content[: len(content) * 6 // 10])
    (folder / "empty.png").write_bytes(b"")
    (folder / "README").write_text("where these come from")
    (folder / "noise.jpg").write_bytes(random.Random(0).randbytes(2000))
    (folder / "dangling.png").symlink_to("gone.png")
    (folder / "circle.png").symlink_to("circle.png")
    Image.new("1", (10_000, 10_000)).save(folder / "large.png")  # 100 million pixels: Pillow warns
    Image.new("1", (20_000, 10_000)).save(folder / "bomb.png")  # 200 million: Pillow refuses
    return {
        "cut.jpg": "truncated",
        "cut.png": "truncated",
        "cut.gif": "truncated",
        "cut.webp": "",  # libwebp's own words
        "cut.tif": "",
        "empty.png": "empty file",
        "README": "not an image file",
        "noise.jpg": "not an image file",
        "dangling.png": "No such file",
        "circle.png": "symbolic links",
        "large.png": "decompression bomb",
        "bomb.png": "decompression bomb",
    }


def test_bad_files_are_skipped_and_listed_by_name_and_reason(tmp_path):
    fill(tmp_path / "in", 200)
    expected = spoil(tmp_path / "in")
    images, holdout, dataset = run(config("folder", tmp_path / "in"), tmp_path / "out")
    assert sorted(greys(images, holdout)) == list(range(200))
    assert dataset["found"] == 200 + len(expected)
    assert dataset["bad"] == len(expected)
    reasons = {file["name"]: file["reason"] for file in dataset["bad_files"]}
    assert reasons.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in reasons[name]
        assert reasons[name]
        assert str(tmp_path) not in reasons[name]


def test_notes_and_sidecar_files_do_not_count(tmp_path):
    fill(tmp_path / "in", 10)
    for name in ("README.txt", "labels.json", "000.XMP", "000.png.json", "Thumbs.db"):
        (tmp_path / "in" / name).write_text("about pictures")
    Image.new("L", (8, 8), 200).save(tmp_path / "in/txt.png")
    images, holdout, dataset = run(config("folder", tmp_path / "in"), tmp_path / "out")
    assert (dataset["found"], dataset["bad"], len(images) + len(holdout)) == (11, 0, 11)


def test_one_line_says_what_was_taken_and_what_was_not(tmp_path, capsys):
    fill(tmp_path / "in", 100)
    run(config("folder", tmp_path / "in"), tmp_path / "plain")
    assert capsys.readouterr().err == "glann: prepare: 98 training images and 2 held out\n"
    for i in range(3):
        (tmp_path / "in" / f"{i}.png").write_text("not an image")
    (tmp_path / "in/empty.png").write_bytes(b"")
    run(config("folder", tmp_path / "in", count=101), tmp_path / "out")
    assert capsys.readouterr().err == (
        "glann: prepare: 98 training images and 2 held out; 4 skipped: not an image file (3), "
        "empty file (1); see data/prepare/review.html; prepare.count asks for 101, "
        "but there are only 100\n"
    )


def test_more_bad_files_than_allowed_stop_with_one_line_and_leave_nothing(tmp_path):
    fill(tmp_path / "in", 8)
    for i in range(12):
        (tmp_path / "in" / f"bad\n{i}.png").write_bytes(b"no image")
    line = stop(config("folder", tmp_path / "in"), tmp_path / "out")
    assert "12 of 20 images" in line
    assert "prepare.max_bad_fraction" in line
    assert r"bad\n" in line
    assert "not an image file" in line


def test_a_tolerant_threshold_lets_the_same_folder_pass(tmp_path):
    fill(tmp_path / "in", 8)
    for i in range(12):
        (tmp_path / "in" / f"bad{i}.png").write_bytes(b"no image")
    images, holdout, _ = run(config("folder", tmp_path / "in", max_bad_fraction=0.6), tmp_path / "out")
    assert sorted(greys(images, holdout)) == list(range(8))


def test_too_few_good_images_are_reported_as_such(tmp_path):
    fill(tmp_path / "in", 5)
    (tmp_path / "in/bad.png").write_bytes(b"")
    line = stop(config("folder", tmp_path / "in", holdout=5, max_bad_fraction=1.0), tmp_path / "out")
    assert line.startswith("prepare.holdout: 5 images are to be held out, but there are only 5")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_files_and_folders_that_may_not_be_read_are_listed(tmp_path):
    fill(tmp_path / "in", 10)
    fill(tmp_path / "in/closed", 1)
    (tmp_path / "in/000.png").chmod(0)
    (tmp_path / "in/closed").chmod(0)
    _, _, dataset = run(config("folder", tmp_path / "in", max_bad_fraction=0.5), tmp_path / "out")
    (tmp_path / "in/closed").chmod(0o700)
    assert [file["name"] for file in dataset["bad_files"]] == ["000.png", "closed"]
    assert {file["reason"] for file in dataset["bad_files"]} == {"Permission denied"}


def test_hidden_files_pipes_and_loops_are_passed_over(tmp_path):
    fill(tmp_path / "in", 5)
    fill(tmp_path / "in/.hidden", 3)
    (tmp_path / "in/.DS_Store").write_bytes(b"\0")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    os.mkfifo(tmp_path / "in/pipe.png")
    (tmp_path / "in/alias.png").symlink_to("003.png")
    images, holdout, dataset = run(config("folder", tmp_path / "in", repeats="keep"), tmp_path / "out")
    assert sorted(greys(images, holdout)) == [0, 1, 2, 3, 3, 4]
    assert dataset["bad"] == 0


def test_the_folder_itself_may_be_a_link(tmp_path):
    fill(tmp_path / "real", 5)
    (tmp_path / "in").symlink_to(tmp_path / "real")
    images, holdout, _ = run(config("folder", tmp_path / "in"), tmp_path / "out")
    assert sorted(greys(images, holdout)) == list(range(5))


def test_odd_names_are_read_and_listed(tmp_path):
    fill(tmp_path / "in", 3)
    names = [b"two words.png", b"new\nline.png", b"\xff\xfe.png", "ü\u202e😀.png".encode()]
    for i, name in enumerate(map(os.fsdecode, names)):
        Image.new("L", (16, 16), 100 + i).save(tmp_path / "in" / name)
        (tmp_path / "in" / f"bad{name}").touch()
    images, holdout, dataset = run(config("folder", tmp_path / "in", max_bad_fraction=0.9), tmp_path / "out")
    assert sorted(greys(images, holdout)) == [0, 1, 2, 100, 101, 102, 103]
    assert [file["name"] for file in dataset["bad_files"]] == [
        "bad\\xff\\xfe.png",
        "badnew\\nline.png",
        "badtwo words.png",
        "badü\\u202e😀.png",
    ]


@pytest.mark.parametrize("source", ["folder", "npy"])
def test_a_missing_path_is_one_line(tmp_path, source):
    assert stop(config(source, tmp_path / "gone"), tmp_path / "out").startswith("prepare.path: ")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "in").write_text("text")
    line = stop(config("folder", tmp_path / "in"), tmp_path / "out")
    assert line.endswith("in: Not a directory; name the folder that holds it")


def test_the_other_source_is_named_where_the_path_is_one_for_it(tmp_path):
    np.save(tmp_path / "in.npy", np.zeros((9, 16, 16), np.uint8))
    line = stop(config("folder", tmp_path / "in.npy"), tmp_path / "out")
    assert line.endswith("Not a directory; set prepare.source to npy")
    line = stop(config("npy", fill(tmp_path / "in", 5)), tmp_path / "out")
    assert line.endswith("a folder; name an .npy file, or set prepare.source to folder")


def test_a_share_of_bad_files_is_raised_only_where_that_leaves_enough_images(tmp_path):
    fill(tmp_path / "in", 5)
    for i in range(2):
        (tmp_path / "in" / f"bad{i}.png").touch()
    line = stop(config("folder", tmp_path / "in", max_bad_fraction=0), tmp_path / "out")
    assert "2 of 7 images cannot be used, more than the 0 allowed" in line
    assert line.endswith("remove or repair them, or raise prepare.max_bad_fraction to 0.29")
    run(config("folder", tmp_path / "in", max_bad_fraction=0.29), tmp_path / "enough")
    line = stop(config("folder", tmp_path / "in", holdout=5), tmp_path / "out")
    assert line.endswith("remove or repair them")


def test_a_folder_without_files_is_one_line(tmp_path):
    (tmp_path / "in/deeper").mkdir(parents=True)
    assert "prepare.path: no files in" in stop(config("folder", tmp_path / "in"), tmp_path / "out")


def test_too_few_images_name_the_holdout(tmp_path):
    line = stop(config("folder", fill(tmp_path / "in", 6), holdout=6), tmp_path / "out")
    assert line.startswith("prepare.holdout: ")
    assert line.endswith("lower prepare.holdout or add images")
    line = stop(config("folder", fill(tmp_path / "two", 2)), tmp_path / "out")
    assert line.endswith("none to train on; add images")  # no hold-out is smaller than 2
