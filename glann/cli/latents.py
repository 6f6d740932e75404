"""Commands for latents that a user brings."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glann.cli.app import Device, Threads, app, as_path, compute_of, path_option
from glann.errors import GlannError
from glann.params import Params, load_params

if TYPE_CHECKING:
    from torch import Tensor


@app.command()
def fit_imle(
    latents: Annotated[Path, typer.Argument(help="a float .npy array [n, d]", parser=as_path)],
    out: Annotated[Path, path_option(help="where to write the mapping, a .safetensors file")],
    labels: Annotated[
        Path | None, path_option("--labels", help="the class of each latent, an integer .npy array [n]")
    ] = None,
    params_file: Annotated[
        Path | None, path_option("--params", help="a params.yaml; its imle section and seed are used")
    ] = None,
    device: Device = "auto",
    threads: Threads = 2,
) -> None:
    """Fit a mapping from noise to your own latents; with --labels, the class of a sample can be chosen."""
    settings = load_params(params_file) if params_file else Params()
    compute = compute_of(device, "float32", threads)

    from glann.imle.fit import fit_imle as fit  # noqa: PLC0415
    from glann.runtime.compute import execution  # noqa: PLC0415
    from glann.runtime.files import check_writable  # noqa: PLC0415
    from glann.runtime.npy import load_latents  # noqa: PLC0415

    check_writable(out)
    if out.suffix != ".safetensors":
        raise GlannError(f"--out {out}: name a .safetensors file")
    of_class, names = _classes(labels) if labels else (None, None)
    result = fit(
        load_latents(latents),
        settings.imle,
        settings.seed,
        execution(compute),
        labels=of_class,
        class_names=names,
    )
    result.mapping.save(out)
    last = result.history[-1]
    print(
        f"mapping in {out}; mean squared distance to the nearest candidate {last['nearest']}", file=sys.stderr
    )


def _classes(path: Path) -> "tuple[Tensor, list[str]]":
    """Return the number of each latent's class, int64 [n], and the names of classes: their labels."""
    import numpy as np  # noqa: PLC0415
    import torch  # noqa: PLC0415

    from glann.runtime.npy import load_npy  # noqa: PLC0415

    given = load_npy(path)
    if given.ndim != 1 or given.dtype.kind not in "iu" or not len(given):
        raise GlannError(f"--labels {path}: expected integers [n], found {given.dtype} {list(given.shape)}")
    values, labels = np.unique(given, return_inverse=True)
    return torch.from_numpy(labels.astype(np.int64)), [str(value) for value in values]
