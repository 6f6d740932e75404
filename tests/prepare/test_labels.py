"""Classes of the prepared images."""

import json

import numpy as np
import pytest
from preparing import config, fill, greys, run, stop

from glann.errors import DamagedFileError, GlannError
from glann.images.classes import in_order, load_classes, needed, numbered, save_classes


def classes_of(out):
    """Return the name of the class of each training and hold-out image, by its grey."""
    found = load_classes(out / "classes.json")
    if found is None:
        return None
    images, holdout = np.load(out / "images.npy"), np.load(out / "holdout.npy")
    rows = [*zip(greys(images), found.images, strict=True), *zip(greys(holdout), found.holdout, strict=True)]
    return {grey: found.names[label] for grey, label in rows}


def animals(folder):
    """Save 4 cats of greys 0 to 3 and 6 dogs of greys 10 to 15."""
    fill(folder / "cat", 4)
    fill(folder / "dog" / "deep", 16)
    for path in sorted((folder / "dog/deep").iterdir())[:10]:
        path.unlink()
    return folder


def test_subfolders_are_classes(tmp_path):
    _, _, dataset = run(config("folder", animals(tmp_path / "in"), repeats="keep"), tmp_path / "out")
    assert classes_of(tmp_path / "out") == {
        **dict.fromkeys(range(4), "cat"),
        **dict.fromkeys(range(10, 16), "dog"),
    }
    assert dataset["classes"] == 2


def test_mirror_images_have_the_class_of_their_picture(tmp_path):
    settings = config("folder", animals(tmp_path / "in"), repeats="keep", mirror=True)
    images, _, _ = run(settings, tmp_path / "out")
    found = load_classes(tmp_path / "out/classes.json")
    assert len(images) == len(found.images) == 16
    assert (found.images[0::2] == found.images[1::2]).all()


@pytest.mark.parametrize("beside", [True, False])
def test_pictures_beside_the_subfolders_or_one_subfolder_alone_are_no_classes(tmp_path, beside):
    folder = animals(tmp_path / "in")
    if beside:
        fill(folder, 1)
    else:
        (folder / "cat").rename(folder / "dog/cat")
    run(config("folder", folder, repeats="keep"), tmp_path / "out")
    assert classes_of(tmp_path / "out") is None


def test_a_file_of_labels_gives_the_classes_of_an_array(tmp_path):
    array = np.arange(12, dtype=np.uint8)[:, None, None].repeat(16, 1).repeat(16, 2)
    np.save(tmp_path / "in.npy", array)
    np.save(tmp_path / "labels.npy", np.arange(12) % 3 * 5 - 5)
    settings = config("npy", tmp_path / "in.npy", repeats="keep", labels=str(tmp_path / "labels.npy"))
    run(settings, tmp_path / "out")
    assert classes_of(tmp_path / "out") == {grey: str(grey % 3 * 5 - 5) for grey in range(12)}


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.arange(11), "labels.npy is int64 [11]; expected integers [12]"),
        (np.arange(12.0), "labels.npy is float64 [12]; expected integers [12]"),
        (np.zeros((12, 1), int), "labels.npy is int64 [12, 1]; expected"),
        (None, "labels.npy: no such file"),
    ],
)
def test_labels_that_do_not_fit_are_one_line(tmp_path, labels, said):
    np.save(tmp_path / "in.npy", np.zeros((12, 16, 16), np.uint8))
    if labels is not None:
        np.save(tmp_path / "labels.npy", labels)
    line = stop(config("npy", tmp_path / "in.npy", labels=str(tmp_path / "labels.npy")), tmp_path / "out")
    assert line.startswith("prepare.labels: ") and said in line


def test_labels_without_an_array_are_refused():
    with pytest.raises(ValueError, match=r"labels: only read if prepare\.source is npy"):
        config("folder", labels="labels.npy")


def test_names_are_sorted_as_people_expect():
    assert in_order(["b", "10", "2", "a", "-1"]) == ["2", "10", "-1", "a", "b"]


def test_a_conditional_mapping_needs_training_images_of_every_class(tmp_path):
    assert needed(numbered(["a", "b"], ["a"]), "npy").names == ["a", "b"]
    with pytest.raises(GlannError, match=r"imle\.conditional: class 'b' has no training image"):
        needed(numbered(["a", "a"], ["b"]), "npy")
    for source, said in (
        ("npy", "name a file of labels"),
        ("folder", "into a subfolder"),
        ("avatars", "set it to false"),
    ):
        with pytest.raises(GlannError, match=rf"imle\.conditional: the images have no classes; .*{said}"):
            needed(None, source)


@pytest.mark.parametrize(
    "content",
    [[], {"names": ["a"]}, {"names": ["a"], "images": [0, 1], "holdout": []},
     {"names": ["a"], "images": ["x"], "holdout": []}, {"names": ["a"], "images": [-1], "holdout": []},
     {"names": "abc", "images": [0], "holdout": []}, {"names": ["a", "a"], "images": [0], "holdout": []},
     {"names": ["a", "b"], "images": [0.7], "holdout": []},
     {"names": ["a", "b"], "images": [True], "holdout": []}],
)  # fmt: skip
def test_a_damaged_file_is_said_to_be_one(tmp_path, content):
    (tmp_path / "classes.json").write_text(json.dumps(content))
    with pytest.raises(DamagedFileError, match=r"classes\.json: holds no classes"):
        load_classes(tmp_path / "classes.json")
    save_classes(tmp_path / "classes.json", None)
    assert load_classes(tmp_path / "classes.json") is None
