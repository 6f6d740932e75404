"""The page over a generator, in a browser and by many at once."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from small import small_generator

from glann.imle.calibration import borrowed_residuals
from glann.page.app import launch
from glann.page.model import PageModel
from glann.runtime.compute import execution
from glann.runtime.files import save_json
from glann.runtime.randomness import stream
from glann.runtime.settings import Compute

ROW = {"frechet": 1.0, "kid": 0.1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageModel]:
    data = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        on = execution(Compute(device="cpu", precision="float32", threads=1))
        generator = small_generator(on)
        with torch.no_grad():  # more contrast than initial weights have
            generator.decoder.network.to_image.weight *= 30
        pairs = torch.randn(2, 20, 8, generator=stream(0, "pairs"))
        generator.mapping.set_residuals(*borrowed_residuals(*pairs, 1.0, stream(0, "draws")))
        made = PageModel(generator, data, None)
        from glann.evaluate.comparison import COLUMNS

        save_json(data / "evaluate/metrics.json", {"glann": dict.fromkeys(COLUMNS, 0.25)})
        yield made


@pytest.fixture(scope="module")
def address(model: PageModel) -> Iterator[str]:
    page, address = launch(model, "127.0.0.1", 0)
    yield address
    page.close()


def photo(path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)).save(path)
    return path


def test_more_like_an_image_begins_with_it_and_stays_near(model: PageModel):
    drawn = model.grid(9, 3, 0.5)
    assert np.array_equal(drawn.images, model.generator.sample(9, 3, truncation=0.5))
    more = model.more_like(drawn, 4, 9, 0)
    assert np.array_equal(more.images[0], drawn.images[4])
    apart = torch.nn.functional.cosine_similarity(more.noise[1:], drawn.noise[4][None], dim=1)
    assert apart.min() > 0.5 > torch.nn.functional.cosine_similarity(drawn.noise, drawn.noise[4:5]).median()


def test_a_conditional_model_lets_the_visitor_choose_a_class(tmp_path: Path):
    on = execution(Compute(device="cpu", precision="float32", threads=1))
    model = PageModel(small_generator(on, classes={"cat": 3, "dog": 1}), tmp_path, None)
    drawn = model.grid(5, 3, 1.0, "dog")
    assert np.array_equal(drawn.images, model.generator.sample(5, 3, class_name="dog"))
    more = model.more_like(drawn, 2, 4, 0)
    assert more.labels is not None and more.labels.tolist() == [1, 1, 1, 1]
    page, address = launch(model, "127.0.0.1", 0)
    try:
        client = Client(address, verbose=False)
        assert len(client.predict(0, 1.0, 4, "dog", api_name="/sample")[0]) == 4
        with pytest.raises(AppError, match="bird is not in the list of choices"):
            client.predict(0, 1.0, 4, "bird", api_name="/sample")
    finally:
        page.close()


def test_many_at_once_get_their_own_grids(model: PageModel, address: str):
    def grid(seed: int) -> list[Any]:
        return Client(address, verbose=False).predict(seed, 1.0, 4, api_name="/sample")[0]

    with ThreadPoolExecutor(20) as people:
        grids = list(people.map(grid, range(20)))
    expected = [
        model.generator.sample(1, seed)[0].repeat(12, axis=0).repeat(12, axis=1) for seed in range(20)
    ]
    for seed, found in enumerate(grids):
        first = np.asarray(Image.open(found[0]["image"]).convert("RGB")).astype(int)
        apart = [np.abs(first - one).mean() for one in expected]  # webp is lossy
        assert len(found) == 4 and np.argmin(apart) == seed


def test_a_bad_upload_is_one_sentence(address: str, tmp_path: Path):
    client = Client(address, verbose=False)
    rng = np.random.default_rng(0)
    for i in range(50):
        bad = tmp_path / f"{i}.png"
        kinds = [
            b"",
            rng.bytes(1000),
            b"%PDF-1.4",
            b"GIF89a" + rng.bytes(30),
            b"\x89PNG\r\n\x1a\n" + rng.bytes(99),
        ]
        bad.write_bytes(kinds[i % 5])
        with pytest.raises(AppError, match="this file: ") as told:
            client.predict(handle_file(bad), api_name="/find_photo")
        assert "Traceback" not in str(told.value) and "\n" not in str(told.value)
    found = client.predict(handle_file(photo(tmp_path / "good.png")), api_name="/find_photo")
    assert "now move the sliders" in found[2]


@pytest.fixture
def browser() -> Iterator[Any]:
    if not (chromium := shutil.which("chromium")):
        pytest.skip("there is no chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


def test_every_tab_works_in_a_browser(browser: Any, address: str, tmp_path: Path):
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    page.goto(address)
    page.get_by_role("button", name="Draw").click()
    images = page.locator(".grid-container img, .gallery-item img")
    images.nth(15).wait_for()
    before = images.nth(0).get_attribute("src")
    images.nth(3).click()
    page.get_by_text("Image 4 is chosen.").wait_for()
    page.get_by_role("button", name="More like").click()
    page.get_by_text("Click an image.", exact=True).wait_for()
    assert images.nth(0).get_attribute("src") != before
    page.get_by_role("tab", name="Walk").click()
    page.get_by_role("button", name="Walk").click()
    page.locator("img[src*='.webp']:visible").first.wait_for()
    page.get_by_label("seeds to visit").fill("one")
    page.get_by_role("button", name="Walk").click()
    page.get_by_text("expected whole numbers separated by commas").wait_for()
    page.get_by_role("tab", name="Photo").click()
    page.locator("input[type=file]:visible, input[type=file]").first.set_input_files(
        photo(tmp_path / "p.png")
    )
    page.get_by_label("p.png", exact=True).wait_for()  # the text is there only while it is uploaded
    page.get_by_role("button", name="Find it in the model").click()
    page.get_by_text("Done; now move the sliders.").wait_for(timeout=60_000)
    page.get_by_role("tab", name="Model").click()
    page.get_by_text("decoder residual").wait_for()
    page.locator("text=0.25 >> visible=true").first.wait_for()
