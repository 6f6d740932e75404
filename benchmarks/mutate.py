"""Change files at random and hand them to what reads them: an error in one line, or nothing, must follow.

python -m benchmarks.mutate --files 10000
"""

import argparse
import collections
import json
import random
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from glann.errors import GlannError
from glann.networks.decoders.network import DecoderArchitecture, DecoderNetwork
from glann.networks.decoders.settings import Decoder
from glann.networks.layers import initialize
from glann.networks.mappings.network import MappingArchitecture, MappingNetwork
from glann.networks.mappings.settings import Mapping
from glann.params import load_params
from glann.prepare.reading import decode_all, decode_file
from glann.prepare.settings import Prepare
from glann.presets import params_yaml, preset
from glann.runtime.compute import Execution
from glann.runtime.npy import load_latents, load_npy
from glann.runtime.randomness import stream
from glann.runtime.settings import Compute
from glann.runtime.tensors import digest_of, load_tensors
from glann.sample.generator import Generator
from glann.training.checkpoints import Checkpoints

SECONDS = 10  # that a file may take
MOST_BYTES = 2 * 2**30  # of memory that reading a file may add to the process: an image of 89 million
# pixels, the most that is decoded, needs a gigabyte in four channels and float
IMAGES = {"png": "RGBA", "jpg": "RGB", "gif": "P", "tif": "I;16", "webp": "RGB", "bmp": "RGB", "ppm": "L"}
INTEGERS = (0, 1, -1, 2, 3, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 10**30)
BOMB = "[x]"  # in YAML: nested aliases that stand for 9**9 items
for name in "abcdefghi":
    BOMB = f"[&{name} {BOMB}{f', *{name}' * 8}]"
WORDS = (
    *("null", "[]", "{}", "''", "1e999", ".nan", "2001-99-99", "!!python/none", "&a [*a]", "[" * 3000),
    *(BOMB, "9" * 5000, "0x" + "9" * 5000, '"a\\0b"', '"\\e[31m"', "cuda:999", "? [[]]", "!!omap [a: 1]"),
)

Reader = Callable[[Path], object]


class Hang(Exception):  # noqa: N818
    """A file took too long."""


def originals(folder: Path) -> list[tuple[Path, Reader]]:
    """Write a good file of every kind, each with what reads it."""
    run = Execution(torch.device("cpu"), torch.float32)
    decoder = DecoderNetwork(
        DecoderArchitecture(config=Decoder(kind="residual", width=4), latent_dim=4, size=16, channels=3)
    )
    mapping = MappingNetwork(
        MappingArchitecture(config=Mapping(kind="mlp", width=8, depth=2), noise_dim=3, latent_dim=4)
    )
    for network in (decoder, mapping):
        initialize(network, stream(0, "mutate"))
    Generator(mapping, decoder, run).save(folder / "generator.safetensors")
    checkpoint = Checkpoints(folder, "glo", "mutate", minutes=0)
    checkpoint.save({"x": torch.ones(5, 3), "n": torch.zeros(())}, {"history": [], "step": 1})
    np.save(folder / "latents.npy", np.ones((6, 4), np.float32))
    np.save(folder / "images.npy", np.ones((6, 8, 8, 3), np.uint8))
    (folder / "params.yaml").write_text(params_yaml(preset("avatars")))
    noise = np.random.default_rng(0).integers(0, 255, (9, 13, 4), np.uint8)
    for suffix, mode in IMAGES.items():
        Image.fromarray(noise).convert("L").convert(mode).save(folder / f"image.{suffix}")
    image = [(folder / f"image.{suffix}", _read_image) for suffix in IMAGES]
    return [
        (folder / "generator.safetensors", lambda path: Generator.load(path, Compute(device="cpu"))),
        (checkpoint.path, load_tensors),
        (folder / "latents.npy", load_latents),
        (folder / "images.npy", lambda path: load_npy(path, mmap=True).sum()),
        (folder / "params.yaml", load_params),
        *image,
    ]


def _read_image(path: Path) -> object:
    (found,) = decode_all(
        [path.name.encode()],
        lambda name, config: decode_file(name, config, bytes(path.parent)),
        Prepare(resolution=16),
    )
    if isinstance(found, str):
        assert found and "\n" not in found
        raise GlannError(found)
    return found


def mutate(content: bytes, draws: random.Random) -> bytes:
    """Return a file's bytes with one to eight random changes."""
    changed = bytearray(content)
    for _ in range(draws.choice([1, 1, 1, 2, 4, 8])):
        at, size = draws.randrange(len(changed) + 1), draws.choice([1, 2, 4, 8, 64])
        kind = draws.randrange(7)
        if kind == 0 and changed:
            changed[at % len(changed)] ^= 1 << draws.randrange(8)
        elif kind == 1:
            changed[at : at + size] = draws.randbytes(size)
        elif kind == 2:
            del changed[at : at + size * draws.choice([1, 16])]
        elif kind == 3:
            changed[at:at] = changed[at : at + size] * draws.choice([1, 2, 1000])
        elif kind == 4:
            length = draws.choice([2, 4, 8])
            number = draws.choice(INTEGERS) % 2 ** (8 * length)
            changed[at : at + length] = number.to_bytes(length, draws.choice(["little", "big"]))
        elif kind == 5:
            changed[at : at + draws.choice([0, size])] = draws.choice(WORDS).encode()
        else:
            del changed[at:]
    return bytes(changed)


def revalue(content: bytes, draws: random.Random) -> bytes:
    """Return params.yaml with one value or key replaced, or a key twice."""
    lines = content.decode().splitlines()
    at = draws.choice([i for i, line in enumerate(lines) if not line.lstrip().startswith("#")])
    key, _, value = lines[at].partition(":")
    word = draws.choice([*WORDS, *map(str, INTEGERS)])
    lines[at] = draws.choice([f"{key}: {word}", f"{key}_{word}:{value}", f"{key}: {word}\n{key}: {word}"])
    return "\n".join(lines).encode()


def reseal(path: Path, draws: random.Random) -> None:
    """Change tensors or config of a safetensors file as one would who knows the format, digest and all."""
    tensors, config = load_tensors(path)
    header = json.loads(json.dumps(config))
    for _ in range(draws.choice([1, 1, 2])):
        if draws.random() < 0.6:
            _change_value(header, draws)
        else:
            name = draws.choice([*tensors])
            shapes: list[tuple[int, ...]] = [(), (0,), (1,), (7, 3), (*tensors[name].shape, 1)]
            kinds = [torch.float16, torch.int64, torch.bool, torch.float32]
            tensors[name] = torch.zeros(draws.choice(shapes), dtype=draws.choice(kinds))
        if draws.random() < 0.2:
            tensors.pop(draws.choice([*tensors]))
    if draws.random() < 0.1:
        header = draws.choice([None, 3, [], "x", {"mapping": 1}])
    sealed = json.dumps({"config": header, "sha256": digest_of(tensors, header)})
    safetensors.torch.save_file(tensors, path, {"glann": sealed})


def _change_value(value: Any, draws: random.Random) -> None:
    """Replace one value somewhere inside dictionaries."""
    while isinstance(value, dict) and value:
        key = draws.choice([*value])
        if not isinstance(value[key], dict) or draws.random() < 0.1:
            value[key] = draws.choice([*INTEGERS, "x", None, [], 1.5, True])
            return
        value = value[key]


def read(path: Path, reader: Reader) -> str:
    """Return "read", "refused", or what went wrong."""

    def late(_: int, __: FrameType | None) -> None:
        raise Hang(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        reader(path)
    except (GlannError, OSError) as error:
        return "refused" if str(error) and "\n" not in str(error) else f"not one line: {error!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
    return "read"


def run(files: int, seed: int, keep: Path | None) -> dict[str, collections.Counter[str]]:
    """Read `files` changed files of all kinds in turn; return what happened to each kind.

    Raises
    ------
    MemoryError
        Nowhere: the limit is put on the process, and going beyond it counts as an outcome.
    """
    outcomes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    draws = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        good = [(path, reader, path.read_bytes()) for path, reader in originals(Path(name))]
        for path, reader, _ in good:
            assert read(path, reader) == "read", path
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (size + MOST_BYTES, before[1]))
        try:
            for i in range(files):
                path, reader, content = good[i % len(good)]
                path.write_bytes(content)
                if path.suffix == ".safetensors" and draws.random() < 0.5:
                    reseal(path, draws)
                elif path.suffix == ".yaml" and draws.random() < 0.5:
                    path.write_bytes(revalue(content, draws))
                else:
                    path.write_bytes(mutate(content, draws))
                outcome = read(path, reader)
                outcomes[path.name.split("-")[0]][outcome] += 1
                if outcome not in ("read", "refused") and keep:
                    keep.mkdir(exist_ok=True)
                    (keep / f"{i}{path.suffix}").write_bytes(path.read_bytes())
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
    return outcomes


def main() -> None:
    """Print a line per kind of file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for files that were neither read nor refused")
    options = parser.parse_args()
    start = time.monotonic()
    outcomes = run(options.files, options.seed, options.keep)
    for kind, counts in outcomes.items():
        print(f"{kind}: {', '.join(f'{count} {outcome}' for outcome, count in counts.most_common())}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{options.files} files in {time.monotonic() - start:.0f} s; peak memory {peak:.2f} GiB")
    if any(set(counts) - {"read", "refused"} for counts in outcomes.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
