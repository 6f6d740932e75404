"""Commands that show a trained generator elsewhere: exported, or on a page."""

import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from glann.cli.app import Device, Precision, Threads, app, as_path, compute_of, path_option
from glann.cli.model import DEFAULT, DataFolder, GeneratorFile, Weights, check_apart, generator_file
from glann.errors import GlannError
from glann.runtime.settings import Compute


@app.command()
def export(
    out: Annotated[Path, path_option(help="a .onnx, or an .html that draws images in any browser")],
    runtime: Annotated[
        Path | None,
        path_option(help="for .html: folder dist of the npm package onnxruntime-web; default: download it"),
    ] = None,
    generator: GeneratorFile = DEFAULT,
) -> None:
    """Write a trained generator in another format."""
    generator = generator_file(generator)
    if out.suffix.lower() not in (".onnx", ".html"):
        raise GlannError(f"--out {out}: use a name ending in .onnx or .html")
    check_apart(out)

    from glann.export.graph import export_onnx  # noqa: PLC0415
    from glann.export.page import export_html  # noqa: PLC0415
    from glann.runtime.files import check_writable  # noqa: PLC0415
    from glann.sample.generator import Generator  # noqa: PLC0415

    check_writable(out)
    model = Generator.load(generator, Compute(device="cpu", precision="float32"))
    if out.suffix.lower() == ".onnx":
        export_onnx(model, out)
    else:
        export_html(model, out, runtime)
    print(f"{out.stat().st_size / 1e6:.1f} MB in {out}", file=sys.stderr)


@app.command()
def publish(
    repo: Annotated[
        str, typer.Argument(help="name on the Hugging Face Hub, such as user/faces", show_default=False)
    ] = "",
    out: Annotated[
        Path | None,
        path_option(help="a folder: only write there what would be published, to look at it first"),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="only you and your organisation can see it")
    ] = False,
    data: Annotated[
        Path | None,
        path_option(
            help="data folder of the training, for the model card; default: data, unless --generator is given"
        ),
    ] = None,
    generator: Annotated[
        Path | None,
        path_option(help="file written by the imle stage, or hf://USER/NAME; default: the one in --data"),
    ] = None,
) -> None:
    """Publish a trained generator on the Hugging Face Hub, for everybody unless --private is given."""
    if not repo and not out:
        raise GlannError("publish: name a repository, such as user/faces, or a folder with --out")
    if not generator:
        data = data or Path("data")
        generator = data / "imle/generator.safetensors"
    generator = generator_file(generator)
    if out:
        check_apart(out)

    from glann.sample.generator import Generator  # noqa: PLC0415
    from glann.sample.hub import sharing  # noqa: PLC0415

    if repo:
        sharing.check_name(repo)
    if out:
        sharing.check_folder(out)
    model = Generator.load(generator, Compute(device="cpu", precision="float32"))
    if out:
        sharing.save(model, out, data, repo)
        print(f"{sum(1 for _ in out.iterdir())} files in {out}", file=sys.stderr)
    else:
        address = sharing.push(model, repo, data, private or None, token=None)
        print(f"published at {address}", file=sys.stderr)


@app.command()
def page(
    directions: Annotated[
        list[Path] | None, typer.Option(help="files of glann direction, for the sliders", parser=as_path)
    ] = None,
    host: Annotated[
        str, typer.Option(help="127.0.0.1: this computer only; 0.0.0.0: all that can reach it")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1024, max=65535, help="port of the page")] = 7860,
    password: Annotated[str, typer.Option(help='what the user "glann" has to enter; default: nothing')] = "",
    generator: GeneratorFile = DEFAULT,
    data: DataFolder = Path("data"),
    weights: Weights = None,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = 2,
) -> None:
    """Open a page in the browser over a trained generator: samples, walks, photographs, metrics."""
    compute = compute_of(device, precision, threads)
    generator = generator_file(generator)
    try:
        from glann.page.app import launch  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise GlannError("page: needs the package gradio; run: pip install 'glann[page]'") from None
    from glann.page.model import PageModel  # noqa: PLC0415
    from glann.sample.generator import Generator  # noqa: PLC0415

    model = PageModel(Generator.load(generator, compute), data, weights, directions)
    shown, address = launch(model, host, port, password)
    print(f"the page is at {address}; Ctrl-C ends it", file=sys.stderr)
    with suppress(KeyboardInterrupt):
        threading.Event().wait()
    shown.close(verbose=False)
