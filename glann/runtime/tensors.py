"""Tensors and networks in safetensors files, with a configuration and a digest in the header."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from glann.errors import DamagedFileError
from glann.runtime.files import check_file, replacing
from glann.runtime.validation import one_line

Network = TypeVar("Network", bound=nn.Module)


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], config: Any = None) -> None:
    """Write tensors as safetensors, with `config` (any json value) and a digest in the header."""
    copies = on_cpu(tensors)
    # A single entry, since the order of several is not fixed.
    header = json.dumps({"config": config, "sha256": digest_of(copies, config)}, sort_keys=True)
    with replacing(path) as temporary:
        safetensors.torch.save_file(copies, temporary, {"glann": header})


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors on the CPU and contiguous in memory."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], Any]:
    """Read a safetensors file.

    Returns
    -------
    tuple
        The tensors by name, and the config from the header (None if there is none).

    Raises
    ------
    GlannError
        If the file is missing, is not a safetensors file, or was changed after it was written.
    """
    with _opened(path) as file:
        header = _header(file)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if "sha256" in header and header["sha256"] != digest_of(tensors, header.get("config")):
        raise DamagedFileError(path, "damaged: its content is not what was written (sha256 differs)")
    return tensors, header.get("config")


def load_config(path: str | Path) -> Any:
    """Read only the config from the header of a file written by `save_tensors`."""
    with _opened(path) as file:
        return _header(file).get("config")


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    check_file(path)
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, ValueError, RecursionError) as error:
        why = " ".join(str(error).split())[:150]
        raise DamagedFileError(path, f"not a safetensors file, or a damaged one ({why})") from None


def _header(file: Any) -> dict[str, Any]:
    header = json.loads((file.metadata() or {}).get("glann", "{}"))
    return header if isinstance(header, dict) else {}


def digest_of(tensors: Mapping[str, Tensor], config: Any) -> str:
    """Return the SHA-256 of tensors on the CPU and of a json value."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_network(path: str | Path, build: Callable[[Any], Network]) -> Network:
    """Read a network: `build` makes it from the config in the header, then the tensors are loaded.

    The network is built on the "meta" device, so memory use depends on the file size, not on its config.

    Raises
    ------
    GlannError
        If the file is missing or damaged, or if the tensors do not fit the network.
    """
    tensors, config = load_tensors(path)
    try:
        with torch.device("meta"):
            network = build(config)
        for name, expected in network.state_dict().items():
            if name not in tensors or (found := tensors[name]).dtype != expected.dtype:
                raise ValueError(f"{name} is missing, or is not {expected.dtype}")
            if found.shape != expected.shape:
                raise ValueError(f"{name} is {list(found.shape)}, expected {list(expected.shape)}")
            if not found.isfinite().all():
                raise ValueError(f"{name} has numbers that are NaN or infinite")
            if name.endswith("running_var") and (found < 0).any():
                raise ValueError(f"{name} has variances that are negative")
        network.load_state_dict(tensors, assign=True)
    except ValidationError as error:
        raise DamagedFileError(path, f"holds another kind of network ({one_line(error)})") from None
    except (RuntimeError, TypeError, KeyError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedFileError(path, f"does not hold what is expected here ({reason})") from None
    return network
