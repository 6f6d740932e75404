"""Commands for latents that a user brings."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from glann.cli.app import Device, Threads, app, as_path, compute_of, path_option
from glann.errors import GlannError
from glann.params import Params, load_params


@app.command()
def fit_imle(
    latents: Annotated[Path, typer.Argument(help="a float .npy array [n, d]", parser=as_path)],
    out: Annotated[Path, path_option(help="where to write the mapping, a .safetensors file")],
    params_file: Annotated[
        Path | None, path_option("--params", help="a params.yaml; its imle section and seed are used")
    ] = None,
    device: Device = "auto",
    threads: Threads = 2,
) -> None:
    """Fit a mapping from noise to your own latents, of any norm."""
    settings = load_params(params_file) if params_file else Params()
    compute = compute_of(device, "float32", threads)

    from glann.imle.fit import fit_imle as fit  # noqa: PLC0415
    from glann.runtime.compute import execution  # noqa: PLC0415
    from glann.runtime.files import check_writable  # noqa: PLC0415
    from glann.runtime.npy import load_latents  # noqa: PLC0415

    check_writable(out)
    if out.suffix != ".safetensors":
        raise GlannError(f"--out {out}: name a .safetensors file")
    result = fit(load_latents(latents), settings.imle, settings.seed, execution(compute))
    result.mapping.save(out)
    last = result.history[-1]
    print(
        f"mapping in {out}; mean squared distance to the nearest candidate {last['nearest']}", file=sys.stderr
    )
