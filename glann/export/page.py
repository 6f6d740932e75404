"""One html file that draws images in any browser, without a network: the ONNX graph and onnxruntime-web."""

import gzip
import hashlib
import json
import os
import tarfile
import tempfile
import urllib.request
import zlib
from base64 import b64encode
from http.client import HTTPException
from pathlib import Path

from glann.errors import GlannError
from glann.export.graph import export_onnx
from glann.runtime.files import cache_folder, file_digest, replacing
from glann.sample.generator import Generator

VERSION = "1.30.0"  # of onnxruntime-web
SCRIPT, BINARY = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
SHA256 = {
    SCRIPT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    BINARY: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
REGISTRY = "https://registry.npmjs.org"
SECONDS = 60  # to wait for the network
TEMPLATE = Path(__file__).with_name("page.html")


def export_html(generator: Generator, path: Path, runtime: Path | None = None) -> None:
    """Write the page.

    Parameters
    ----------
    generator
        The trained generator.
    path
        The html file.
    runtime
        Folder ``dist`` of the npm package onnxruntime-web. None: it is downloaded once.

    Raises
    ------
    GlannError
        If packages are missing, or if onnxruntime-web can neither be found nor downloaded.
    """
    script, binary = _runtime(runtime)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "generator.onnx"
        export_onnx(generator, graph)
        model = graph.read_bytes()
    about = {
        "noise": generator.mapping.architecture.noise_dim,
        "size": generator.decoder.architecture.size,
        "channels": generator.decoder.architecture.channels,
        "classes": generator.classes,
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for mark, value in {
        "SCRIPT": _packed(script),
        "BINARY": _packed(binary),
        "MODEL": _packed(model),
        "ABOUT": json.dumps(about).replace("<", "\\u003c"),  # no name may end the script
    }.items():
        text = text.replace(f"%{mark}%", value)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _packed(content: bytes) -> str:
    return b64encode(gzip.compress(content, mtime=0)).decode()


def _runtime(folder: Path | None) -> tuple[bytes, bytes]:
    """Return the script and the binary of onnxruntime-web."""
    given, folder = folder, folder or cache_folder() / f"onnxruntime-web-{VERSION}"
    if given is None and not all(_is_genuine(folder / name) for name in (SCRIPT, BINARY)):
        _download(folder)
    for name in (SCRIPT, BINARY):
        if not _is_genuine(folder / name):
            raise GlannError(
                f"--runtime {folder}: has no {name} of version {VERSION}; name the folder dist of the npm "
                "package onnxruntime-web of this version"
            )
    return (folder / SCRIPT).read_bytes(), (folder / BINARY).read_bytes()


def _is_genuine(path: Path) -> bool:
    return path.is_file() and file_digest(path) == SHA256[path.name]


def _download(folder: Path) -> None:
    registry = os.environ.get("NPM_CONFIG_REGISTRY", REGISTRY).rstrip("/")
    source = f"{registry}/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
    try:
        with tempfile.TemporaryFile() as archive:
            with urllib.request.urlopen(source, timeout=SECONDS) as answer:
                while block := answer.read(2**20):
                    archive.write(block)
            archive.seek(0)
            with tarfile.open(fileobj=archive) as files:
                for name in (SCRIPT, BINARY):
                    member = files.extractfile(f"package/dist/{name}")
                    content = member.read() if member else b""
                    if hashlib.sha256(content).hexdigest() != SHA256[name]:
                        raise ValueError(f"{name} is not the one of version {VERSION}")
                    with replacing(folder / name) as temporary:
                        temporary.write_bytes(content)
    except (OSError, EOFError, ValueError, HTTPException, tarfile.TarError, zlib.error, KeyError) as error:
        why = " ".join(str(error).split())[:100]
        raise GlannError(
            f"onnxruntime-web: could not download {source} ({why}); unpack it elsewhere, and name its folder "
            "dist with --runtime"
        ) from None
