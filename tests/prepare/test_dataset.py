"""Images become training images and a hold-out."""

import hashlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from preparing import OUTPUTS, config, fill, greys, run, stop

from glann.errors import GlannError
from glann.prepare.dataset import prepare, processes_that_fit
from glann.prepare.reading import MOST_PIXELS
from glann.prepare.workers import in_order
from glann.runtime.compute import cores
from glann.runtime.memory import available
from glann.runtime.npy import NpyWriter, digest_of_rows


def test_every_image_of_a_tree_becomes_one_training_or_holdout_image(tmp_path):
    fill(tmp_path / "in", 20)
    (tmp_path / "in/deep/deeper").mkdir(parents=True)
    for name in ("003.png", "011.png"):
        (tmp_path / "in" / name).rename(tmp_path / "in/deep/deeper" / name)
    images, holdout, dataset = run(config("folder", tmp_path / "in", holdout=5), tmp_path / "out")
    assert images.shape == (15, 16, 16, 3)
    assert holdout.shape == (5, 16, 16, 3)
    assert images.dtype == holdout.dtype == np.uint8
    assert sorted(greys(images, holdout)) == list(range(20))
    means = dataset.pop("channel_means")
    assert np.allclose(means, images.mean((0, 1, 2)) / 255)
    digests = {"images.npy": digest_of_rows(images), "holdout.npy": digest_of_rows(holdout)}
    assert dataset.pop("sha256") == digests
    assert dataset == {
        "source": "folder",
        "fit": "crop",
        "background": [255, 255, 255],
        "found": 20,
        "requested": None,
        "taken": 20,
        "train": 15,
        "holdout": 5,
        "classes": 0,
        "bad": 0,
        "bad_files": [],
    }


def test_mirror_adds_the_mirror_image_of_each_training_image(tmp_path):
    fill(tmp_path / "in", 9)
    for i in range(9):
        Image.linear_gradient("L").rotate(90).resize((16, 16)).point(lambda v, i=i: v // 2 + 8 * i).save(
            tmp_path / f"in/{i:03}.png"
        )
    plain, holdout, before = run(config("folder", tmp_path / "in", repeats="keep"), tmp_path / "plain")
    chosen = config("folder", tmp_path / "in", repeats="keep", mirror=True)
    images, same_holdout, dataset = run(chosen, tmp_path / "mirrored")
    assert (plain != plain[:, :, ::-1]).any(axis=(1, 2, 3)).all()
    assert (images[0::2] == plain).all()
    assert (images[1::2] == plain[:, :, ::-1]).all()
    assert (same_holdout == holdout).all()
    assert (dataset["taken"], dataset["train"], dataset["holdout"]) == (9, 14, 2)
    assert dataset["sha256"]["images.npy"] == digest_of_rows(images)
    assert np.allclose(dataset["channel_means"], before["channel_means"])


def test_mirror_images_do_not_count(tmp_path):
    chosen = config("folder", fill(tmp_path / "in", 20), count=6, mirror=True)
    images, _, dataset = run(chosen, tmp_path / "out")
    assert (len(images), dataset["taken"]) == (8, 6)


def test_the_preview_shows_the_first_training_images(tmp_path):
    images, _, _ = run(config("folder", fill(tmp_path / "in", 80)), tmp_path / "out")
    preview = np.asarray(Image.open(tmp_path / "out/preview.png"))
    assert (preview[2:18, 2:18] == images[0]).all()
    assert (preview[-18:-2, -18:-2] == images[63]).all()  # an 8 x 8 grid with gaps of 2 pixels


def test_equal_seeds_give_equal_bytes_and_other_seeds_another_choice(tmp_path):
    chosen = config("folder", fill(tmp_path / "in", 40), count=10)
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(chosen, tmp_path / out, seed)
    for name in OUTPUTS:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        differs = (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()
        assert differs == (
            name not in ("classes.json", "repeats.json", "review.html")
        )  # nothing is there twice


def test_the_place_of_the_folder_changes_nothing(tmp_path, monkeypatch):
    fill(tmp_path / "in", 9)
    (tmp_path / "in/bad.png").write_bytes(b"no image")
    run(config("folder", tmp_path / "in", max_bad_fraction=0.5), tmp_path / "a")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in").rename(tmp_path / "elsewhere/in")
    monkeypatch.chdir(tmp_path / "elsewhere")
    run(config("folder", "in/", max_bad_fraction=0.5), tmp_path / "b")
    for name in OUTPUTS:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_worker_processes_change_no_byte(tmp_path):
    fill(tmp_path / "in", 150)
    for i in range(0, 150, 10):
        (tmp_path / "in" / f"{i:03}.png").write_bytes(b"")
    for processes in (1, 2):
        run(config("folder", tmp_path / "in", count=120), tmp_path / str(processes), processes=processes)
    for name in OUTPUTS:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_a_script_without_a_main_guard_may_use_worker_processes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from glann.prepare.workers import in_order\nprint(*in_order(abs, [-1, 2, -3], processes=2))"
    )
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == "1 2 3\n"


def test_closing_early_ends_the_workers_without_a_word(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from glann.prepare.workers import in_order\n"
        "for _ in range(5):\n"
        "    results = in_order(abs, range(1000), processes=2)\n"
        "    print(next(results))\n"
        "    results.close()\n"
    )
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=60)
    assert (ran.stdout, ran.stderr) == ("0\n" * 5, "")


def test_a_worker_that_is_killed_is_one_line():
    with pytest.raises(GlannError, match="a worker process died"):
        list(in_order(os._exit, [1], processes=2))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_workers_start_is_not_mistaken_for_a_crash(tmp_path, number):
    script = tmp_path / "script.py"
    script.write_text(
        "import signal, threading\n"
        "from glann.prepare.workers import in_order\n"
        "from glann.runtime.signals import end_in_order\n"
        "start = threading._start_new_thread\n"
        "def start_and_signal(*thread):\n"
        f"    signal.raise_signal({number:d})\n"
        "    return start(*thread)\n"
        "with end_in_order():\n"
        "    threading._start_new_thread = start_and_signal\n"
        "    list(in_order(abs, range(1000), processes=2))\n"
    )
    ran = subprocess.run([sys.executable, script], stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert ran.returncode == (128 + number if number == signal.SIGTERM else -number)
    assert "RuntimeError" not in ran.stderr


def test_count_takes_a_random_part(tmp_path):
    images, holdout, dataset = run(config("folder", fill(tmp_path / "in", 60), count=30), tmp_path / "out")
    taken = greys(images, holdout)
    assert len(set(taken)) == 30
    assert min(taken) < 20
    assert max(taken) >= 40  # with the line above: no thirty in a row
    assert (dataset["found"], dataset["taken"], dataset["holdout"]) == (60, 30, 2)


def test_the_holdout_is_a_random_choice(tmp_path):
    _, holdout, _ = run(config("folder", fill(tmp_path / "in", 60), holdout=20), tmp_path / "out")
    assert min(greys(holdout)) < 20
    assert max(greys(holdout)) >= 40


def test_a_count_above_what_there_is_takes_all(tmp_path):
    _, _, dataset = run(config("folder", fill(tmp_path / "in", 6), count=1000), tmp_path / "out")
    assert (dataset["requested"], dataset["found"], dataset["taken"]) == (1000, 6, 6)


def test_the_next_file_stands_in_for_a_bad_one(tmp_path):
    fill(tmp_path / "in", 40)
    for i in range(0, 40, 4):
        (tmp_path / "in" / f"{i:03}.png").write_bytes(b"")
    images, holdout, dataset = run(
        config("folder", tmp_path / "in", count=30, max_bad_fraction=0.5), tmp_path / "out"
    )
    assert len(images) + len(holdout) == dataset["taken"] == 30
    assert dataset["bad"] == len(dataset["bad_files"]) > 0


def test_earlier_outputs_are_replaced_and_survive_a_failure(tmp_path):
    fill(tmp_path / "in", 10)
    run(config("folder", tmp_path / "in"), tmp_path / "out", seed=1)
    before = (tmp_path / "out/images.npy").read_bytes()
    with pytest.raises(GlannError):
        prepare(config("folder", tmp_path / "in", holdout=10), 1, tmp_path / "out")
    assert (tmp_path / "out/images.npy").read_bytes() == before
    run(config("folder", tmp_path / "in"), tmp_path / "out", seed=2)
    assert (tmp_path / "out/images.npy").read_bytes() != before


def test_the_digest_of_rows_is_that_of_their_bytes_in_memory_in_a_file_and_in_any_order(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (3000, 50, 50, 3)).astype(np.uint8)  # of two blocks
    np.save(tmp_path / "a.npy", array)
    expected = hashlib.sha256(array.tobytes()).hexdigest()
    assert digest_of_rows(array) == digest_of_rows(np.load(tmp_path / "a.npy", mmap_mode="r")) == expected
    assert digest_of_rows(np.asfortranarray(array[:20])) == digest_of_rows(array[:20]) != expected
    assert digest_of_rows(array[:0]) == hashlib.sha256().hexdigest()


def test_an_array_that_grows_is_the_file_that_numpy_writes(tmp_path):
    array = np.arange(7 * 2 * 3, dtype=np.uint8).reshape(7, 2, 3)
    with NpyWriter(tmp_path / "a.npy", (2, 3)) as file:
        file.append(array[:4])
        file.append(array[4:])
    np.save(tmp_path / "b.npy", array)
    assert file.count == 7
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_as_many_processes_run_as_the_largest_images_leave_room_for():
    gib = 2**30
    assert processes_that_fit(64 * 64, 8 * gib) == min(cores(), 32)
    assert processes_that_fit(MOST_PIXELS, 2 * gib) == 1
    assert processes_that_fit(MOST_PIXELS, 0) == 1


def test_files_that_were_read_do_not_count_as_memory_in_use(tmp_path, monkeypatch):
    monkeypatch.setattr("glann.runtime.memory.CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 200\nactive_file 300\ninactive_file 400\n")
    assert available(torch.device("cpu")) == 800


def pipeline_folder(tmp_path, monkeypatch):
    """Go to a folder with results of earlier runs, and pictures of one's own beside them."""
    fill(tmp_path / "project/data/sample/images", 5)
    fill(tmp_path / "project/data/raw", 6)
    (tmp_path / "project/data/prepare").mkdir()
    np.save(tmp_path / "project/data/prepare/images.npy", np.zeros((9, 16, 16), np.uint8))
    (tmp_path / "project/link").symlink_to("data/sample")
    monkeypatch.chdir(tmp_path / "project")


OWN = ("data", "..", "data/sample/images", "link/images", "data/./")


@pytest.mark.parametrize(
    ("path", "data_is_a_link"),
    # Where data is a link, "." does not hold it: linked folders are not entered.
    [(".", False), *((path, False) for path in OWN), *((path, True) for path in OWN)],
)
def test_the_pipelines_own_pictures_are_refused(tmp_path, monkeypatch, path, data_is_a_link):
    pipeline_folder(tmp_path, monkeypatch)
    if data_is_a_link:
        (tmp_path / "project/data").rename(tmp_path / "elsewhere")
        (tmp_path / "project/data").symlink_to(tmp_path / "elsewhere")
    line = stop(config("folder", path), tmp_path / "out")
    assert line.startswith(f"prepare.path: {path} ")
    assert "its results; use pictures of your own elsewhere, e.g. data/raw" in line


def test_the_pipelines_own_arrays_are_refused(tmp_path, monkeypatch):
    pipeline_folder(tmp_path, monkeypatch)
    (tmp_path / "linked.npy").symlink_to(tmp_path / "project/data/prepare/images.npy")
    for path in ("data/prepare/images.npy", tmp_path / "linked.npy"):
        line = stop(config("npy", path), tmp_path / "out")
        assert "is in data/prepare, where the pipeline puts its results" in line


def test_pictures_beside_the_results_and_in_folders_like_them_are_taken(tmp_path, monkeypatch):
    pipeline_folder(tmp_path, monkeypatch)
    assert run(config("folder", "data/raw"), tmp_path / "a")[2]["taken"] == 6
    fill(tmp_path / "other/data/sample-faces", 4)
    assert run(config("folder", tmp_path / "other"), tmp_path / "b")[2]["taken"] == 4


def test_added_images_never_move_others_into_the_holdout(tmp_path):
    folder = fill(tmp_path / "in", 60)
    _, before, _ = run(config("folder", folder, holdout=20), tmp_path / "before")
    for i in range(40):
        Image.new("L", (8, 8), 100 + i).save(folder / f"new{i}.png")
    _, after, _ = run(config("folder", folder, holdout=20), tmp_path / "after")
    known = set(greys(after)) & set(range(60))
    assert known < set(greys(before)) and len(known) < 20


@pytest.mark.parametrize("mirror", [False, True])
def test_each_row_has_its_name(tmp_path, mirror):
    folder = fill(tmp_path / "in", 10)
    images, holdout, _ = run(config("folder", folder, mirror=mirror, repeats="keep"), tmp_path / "out")
    names = json.loads((tmp_path / "out/names.json").read_text())
    for array, key in ((images, "images"), (holdout, "holdout")):
        assert [int(name.removesuffix(".png")) for name in names[key]] == greys(array)
