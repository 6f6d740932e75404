import os
from pathlib import Path

import numpy as np
import pytest
import torch

from glann.imle.matching import Matching
from glann.runtime.compute import Execution, execution
from glann.runtime.settings import Compute
from glann.runtime.tensors import save_tensors

ROOT = Path(__file__).parent.parent


# Minutes each: files that begin late would keep one worker busy while the other has nothing to do.
LONG = ("test_stages", "test_docs_commands", "test_faults", "test_pipeline", "test_processes")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONG)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Draws without a generator of their own are the same in every run, in any order of tests."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def cpu() -> Execution:
    return execution(Compute(device="cpu", precision="float32", threads=1))


@pytest.fixture
def shapes() -> np.ndarray:
    """48 images of 16 px, uint8 [48, 16, 16, 3]: a bright square somewhere on a dark ground."""
    rng = np.random.default_rng(0)
    images = np.full((48, 16, 16, 3), 30, np.uint8)
    for image in images:
        top, left = rng.integers(0, 10, 2)
        image[top : top + 6, left : left + 6] = rng.integers(120, 255, 3)
    return images


@pytest.fixture(scope="session")
def random_vgg(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A VGG-16 weights file with random weights: same format, same shapes, no download."""
    from torchvision.models import vgg16

    from glann.networks.layers import initialize

    features = vgg16(weights=None).features
    initialize(features, torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("weights") / "vgg16.safetensors"
    save_tensors(path, {name: value.half() for name, value in features.state_dict().items()})
    return str(path)


@pytest.fixture
def real_vgg() -> str:
    path = os.environ.get("GLANN_VGG_WEIGHTS")
    if not path:
        pytest.skip("GLANN_VGG_WEIGHTS names no VGG-16 weights file")
    return path


@pytest.fixture
def no_matching(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused, or was finished, must not come to the first search."""

    def too_late(*_: object) -> None:
        raise AssertionError("too late")

    monkeypatch.setattr(Matching, "renew", too_late)
