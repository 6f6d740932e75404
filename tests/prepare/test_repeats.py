"""Pictures that are there twice never lie on both sides of the hold-out, and are shown."""

import json
import re

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from preparing import config, fill, run, stop

from glann.prepare.repeats import SHOWN


def photograph(i):
    """Return a picture of 64 px with soft shapes, like no other number's."""
    soft = np.random.default_rng(i).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(soft).resize((64, 64), Image.Resampling.BICUBIC)


def photographs(folder, count):
    folder.mkdir(parents=True)
    for i in range(count):
        photograph(i).save(folder / f"{i:03}.png")
    return folder


def repeats_in(out):
    return json.loads((out / "repeats.json").read_text())


CHANGES = {
    "copied.png": lambda picture: picture,
    "compressed.jpg": lambda picture: picture,
    "larger.png": lambda picture: picture.resize((200, 200), Image.Resampling.BICUBIC),
    "darker.png": lambda picture: ImageEnhance.Brightness(picture).enhance(0.7),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_repeat_is_never_on_the_other_side_of_the_hold_out(tmp_path, change):
    folder = photographs(tmp_path / "in", 30)
    for i in range(30):
        CHANGES[change](photograph(i)).save(folder / f"{i:03}-{change}")
    images, holdout, dataset = run(config("folder", folder, holdout=10), tmp_path / "out")
    repeats = repeats_in(tmp_path / "out")
    assert all(repeat["name"][:3] == repeat["of"][:3] for kind in repeats.values() for repeat in kind)
    # Of 30 pairs, each is held out as a whole, used for training as a whole, or one of it is left out.
    assert len(images) + len(holdout) + len(repeats["left_out"]) == 60
    assert len(repeats["among_training"]) == len(images) / 2
    assert dataset["taken"] == len(images) + len(holdout)
    kept, both, kept_dataset = run(config("folder", folder, holdout=10, repeats="keep"), tmp_path / "kept")
    assert len(kept) + len(both) == 60 and (both == holdout).all()
    assert repeats_in(tmp_path / "kept") is None and kept_dataset["taken"] == 60
    assert "They were not looked for" in (tmp_path / "kept/review.html").read_text()


def test_different_pictures_and_pictures_of_one_colour_are_no_repeats(tmp_path, capsys):
    folder = photographs(tmp_path / "in", 100)
    fill(folder / "flat", 50)
    run(config("folder", folder, holdout=20), tmp_path / "out")
    assert repeats_in(tmp_path / "out") == {"left_out": [], "among_training": []}
    assert "repeat" not in capsys.readouterr().err


def test_what_is_left_out_is_replaced_counted_and_shown(tmp_path, capsys):
    folder = photographs(tmp_path / "in", 80)
    for i in range(80):
        photograph(i).save(folder / f"{i:03}.jpg")
    (folder / "<b>.png").write_text("no picture")
    images, _, _ = run(config("folder", folder, count=60, holdout=20, mirror=True), tmp_path / "out")
    left_out, among = (len(repeats_in(tmp_path / "out")[kind]) for kind in ("left_out", "among_training"))
    assert len(images) == 80 and left_out and among  # 40 and their mirror images
    said = capsys.readouterr().err
    assert f"{left_out} left out, since they repeat a held-out picture" in said
    assert f"{among} of those in training repeat another one; see data/prepare/review.html" in said
    page = (tmp_path / "out/review.html").read_text()
    assert page.count("<img") == min(left_out, SHOWN) + min(among, SHOWN)
    assert all(repeat["name"] in page for repeat in repeats_in(tmp_path / "out")["left_out"])
    assert "<b>" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_the_page_shows_the_pictures_that_it_names(tmp_path):
    array = np.stack([np.asarray(photograph(i // 2)) for i in range(40)])  # each twice
    np.save(tmp_path / "in.npy", array)
    chosen = config("npy", tmp_path / "in.npy", holdout=10, resolution=64, mirror=True)
    run(chosen, tmp_path / "out")
    repeats = repeats_in(tmp_path / "out")
    shown = pictures_of((tmp_path / "out/review.html").read_text())
    pairs = [*repeats["left_out"], *repeats["among_training"]]
    assert len(shown) == len(pairs) > 10
    for pair, picture in zip(pairs, shown, strict=True):
        numbers = [int(pair[key].removeprefix("row ")) for key in ("name", "of")]
        assert numbers[0] // 2 == numbers[1] // 2
        assert (picture == np.concatenate([array[i] for i in numbers], axis=1)).all()


def pictures_of(page):
    from base64 import b64decode
    from io import BytesIO

    found = re.findall(r'src="data:image/png;base64,([^"]*)"', page)
    return [np.asarray(Image.open(BytesIO(b64decode(content)))) for content in found]


def test_only_repeats_are_refused_with_a_way_out(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(9):
        photograph(0).save(folder / f"{i}.png")
    line = stop(config("folder", folder), tmp_path / "out")
    assert line.startswith("prepare.repeats: every picture repeats a held-out one") and "keep" in line


def test_exact_copies_are_found_whatever_they_show(tmp_path):
    board = np.indices((32, 32)).sum(axis=0) % 2 * 255  # flat at 16 px
    array = np.stack([np.full((32, 32), i) for i in range(10)] + [board, 255 - board]).astype(np.uint8)
    np.save(tmp_path / "in.npy", np.repeat(array, 4, axis=0))
    chosen = config("npy", tmp_path / "in.npy", holdout=8, resolution=32, channels=1)
    images, holdout, _ = run(chosen, tmp_path / "out")
    assert not {image.tobytes() for image in images} & {image.tobytes() for image in holdout}
    different = len({image.tobytes() for image in images})
    assert len(repeats_in(tmp_path / "out")["among_training"]) == len(images) - different > 0


def test_pictures_that_differ_in_colour_only_are_no_repeats(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    disc = np.hypot(*(np.indices((64, 64)) - 31.5)) < 20
    for i, colour in enumerate([(200, 0, 0), (0, 100, 0), (0, 0, 255), (90, 90, 90), (150, 150, 0)]):
        Image.fromarray(np.where(disc[..., None], colour, 255).astype(np.uint8)).save(folder / f"{i}.png")
    run(config("folder", folder), tmp_path / "out")
    assert repeats_in(tmp_path / "out") == {"left_out": [], "among_training": []}


def test_a_mirror_image_of_a_held_out_picture_is_not_trained_on(tmp_path):
    folder = photographs(tmp_path / "in", 30)
    for i in range(30):
        photograph(i).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / f"{i:03}-mirrored.png")
    images, holdout, _ = run(config("folder", folder, holdout=15, mirror=True), tmp_path / "out")
    assert not {image.tobytes() for image in images} & {image.tobytes() for image in holdout}
    assert repeats_in(tmp_path / "out")["left_out"]


def test_repeats_count_as_good_files(tmp_path):
    folder = photographs(tmp_path / "in", 8)
    for i in range(72):
        photograph(i % 8).save(folder / f"copy{i}.png")
    for i in range(5):
        (folder / f"{i}.jpg").write_text("no picture")
    for i in range(20, 26):
        photograph(i).save(folder / f"{i}.png")
    _, _, dataset = run(config("folder", folder, holdout=40), tmp_path / "out")
    assert dataset["bad"] == 5
