"""The generator in other formats."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from small import small_generator

from glann.errors import GlannError
from glann.export.graph import export_onnx
from glann.export.page import SCRIPT, export_html
from glann.imle.calibration import borrowed_residuals, fit_range
from glann.runtime.compute import Execution
from glann.runtime.files import cache_folder
from glann.runtime.randomness import noise_rows, stream
from glann.sample.generator import Generator


@pytest.fixture(params=["plain", "residuals", "classes", "classes and residuals"])
def generator(request: pytest.FixtureRequest, cpu: Execution) -> Generator:
    classes = {"</script>": 5, "b": 2, "none": 1} if "classes" in request.param else {}
    made = small_generator(cpu, channels=1, classes=classes)
    if "residuals" in request.param:
        pairs = torch.randn(2, 20, 8, generator=stream(0, "pairs"))
        fit_range(made.mapping, torch.nn.functional.normalize(pairs[0], dim=1))
        kept = borrowed_residuals(*pairs, 1.0, stream(0, "draws"))
        made.mapping.set_residuals(*kept, torch.arange(20) % 2 if classes else None)
    return made


def test_the_graph_draws_what_torch_draws(generator: Generator, tmp_path: Path):
    export_onnx(generator, tmp_path / "g.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "g.onnx"), full_check=True)
    session = onnxruntime.InferenceSession(tmp_path / "g.onnx", providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["glann"])
    assert (about["noise_dim"], about["size"], about["channels"]) == (4, 16, 1)
    assert about.get("classes", []) == generator.classes
    for count, truncation in ((1, 1.0), (7, 0.5), (100, 1.3)):  # any number, whatever was traced
        noise = noise_rows(0, count, 4, 3, "sample")
        inputs = {"noise": noise.numpy(), "truncation": np.array(truncation, np.float32)}
        if generator.classes:
            inputs["labels"] = generator.labels(count, seed=3).numpy()
        (images,) = session.run(["images"], inputs)
        expected = generator.sample(count, seed=3, truncation=truncation)
        assert images.dtype == np.uint8 and images.shape == expected.shape
        assert np.abs(images.astype(int) - expected).max() <= 1


def runtime() -> Path:
    folder = cache_folder() / "onnxruntime-web-1.30.0"
    if not (folder / SCRIPT).is_file():
        pytest.skip(f"{folder} has no onnxruntime-web; glann export --out page.html downloads it")
    return folder


@pytest.mark.parametrize("classes", [{}, {"</script>": 5, "b": 2}], ids=["plain", "classes"])
def test_the_html_file_draws_in_a_browser_without_a_network(
    classes: dict[str, int], cpu: Execution, tmp_path: Path
):
    folder = runtime()
    if not (chromium := shutil.which("chromium")):
        pytest.skip("there is no chromium")
    from playwright.sync_api import sync_playwright

    export_html(small_generator(cpu, classes=classes), tmp_path / "page.html", folder)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_context(offline=True).new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"file://{tmp_path}/page.html")
        page.wait_for_function("document.getElementById('told').textContent.includes('16 images in')")
        pixels = "Array.from(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data)"
        before = page.evaluate(
            f"() => {{ const canvas = document.getElementById('canvas'); return {pixels}; }}"
        )
        assert len(before) == 4 * 64 * 64 and len(set(before)) > 10
        page.click("#walk")
        page.wait_for_function("document.getElementById('told').textContent.includes('per second')")
        page.click("#walk")
        page.fill("#seed", "5")
        page.dispatch_event("#seed", "change")
        page.wait_for_function("document.getElementById('told').textContent.includes('16 images in')")
        after = page.evaluate(
            f"() => {{ const canvas = document.getElementById('canvas'); return {pixels}; }}"
        )
        assert after != before and not errors
        if classes:
            assert page.eval_on_selector_all("#class option", "all => all.map(one => one.textContent)") == [
                "all",
                *classes,
            ]
            page.select_option("#class", "1")
            page.wait_for_function("document.getElementById('told').textContent.includes('16 images in')")
            of_one = page.evaluate(
                f"() => {{ const canvas = document.getElementById('canvas'); return {pixels}; }}"
            )
            assert of_one != after and not errors
        browser.close()


def test_a_folder_without_the_runtime_is_refused(cpu: Execution, tmp_path: Path):
    with pytest.raises(GlannError, match=f"has no {SCRIPT} of version 1.30.0; name the folder dist"):
        export_html(small_generator(cpu), tmp_path / "page.html", tmp_path)
    (tmp_path / SCRIPT).write_text("")
    with pytest.raises(GlannError, match=SCRIPT):
        export_html(small_generator(cpu), tmp_path / "page.html", tmp_path)
    assert not (tmp_path / "page.html").exists()
