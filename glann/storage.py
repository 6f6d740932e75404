"""Files: safetensors, npy and json, written to a temporary name, fsynced, renamed. No pickle anywhere."""

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from glann.config import one_line
from glann.errors import GlannError

Network = TypeVar("Network", bound=nn.Module)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync and rename it, else remove it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The temporary keeps the suffix: writers such as Pillow choose their format by it.
    temporary = path.with_name(f".{path.stem[:80]}-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented json that ends in a newline; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def load_json(path: str | Path) -> Any:
    """Read a json file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise GlannError(f"{path}: not a json file ({error}); make it again") from None


def save_npy(path: str | Path, array: NDArray[Any]) -> None:
    """Write an array as .npy."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def load_npy(path: str | Path, mmap: bool = False) -> NDArray[Any]:
    """Read an .npy array of numbers; with `mmap`, pages are read when touched."""
    if not Path(path).is_file():
        what = "a folder" if Path(path).is_dir() else "no such file"
        raise GlannError(f"{path}: {what}; name an .npy file")
    try:
        array = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except (ValueError, EOFError, SyntaxError) as error:
        raise GlannError(f"{path}: not an .npy array of numbers ({error})") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise GlannError(f"{path}: not an .npy array of numbers")
    return array


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], config: Any = None) -> None:
    """Write tensors as safetensors, with `config` (anything json holds) in the header."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"config": json.dumps(config, sort_keys=True)}
    with replacing(path) as temporary:
        safetensors.torch.save_file(on_cpu, temporary, header)


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], Any]:
    """Read a safetensors file.

    Returns
    -------
    tuple
        The tensors by name, and the config that `save_tensors` put in the header (None if there is none).
    """
    if not Path(path).is_file():
        raise GlannError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            config = json.loads((file.metadata() or {}).get("config", "null"))
            return {name: file.get_tensor(name) for name in file.keys()}, config  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise GlannError(f"{path}: not a safetensors file, or a damaged one ({error})") from None


def load_network(path: str | Path, build: Callable[[Any], Network]) -> Network:
    """Read a network: `build` makes it from the header's config, then the tensors are put in.

    Raises
    ------
    GlannError
        If the file is missing or damaged, or `build` and the tensors do not go together.
    """
    tensors, config = load_tensors(path)
    try:
        network = build(config)
        network.load_state_dict(tensors)
    except ValidationError as error:
        raise GlannError(f"{path}: holds another kind of network ({one_line(error)})") from None
    except (RuntimeError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise GlannError(f"{path}: does not hold what is expected here ({reason})") from None
    return network
