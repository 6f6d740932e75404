"""Sharing a generator over the Hugging Face Hub, by huggingface_hub's own mixin."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glann.errors import GlannError
from glann.runtime.files import all_or_none
from glann.runtime.reporting import memory_ran_out
from glann.runtime.settings import Compute
from glann.sample.generator import Generator
from glann.sample.hub.card import card
from glann.sample.hub.failures import reason
from glann.sample.hub.files import published

try:
    from huggingface_hub import HfApi, ModelHubMixin, constants, errors, hf_hub_download
    from huggingface_hub.utils import logging, validate_repo_id
except ModuleNotFoundError as error:
    if error.name != "huggingface_hub":
        raise
    raise GlannError("hub: needs the package huggingface_hub; run: pip install 'glann[hub]'") from None

GENERATOR, CARD, CONFIG = "generator.safetensors", "README.md", "config.json"
OTHERS = ("grid.png", "metrics.json", "params.yaml")
TEMPLATE = "---\n{{ card_data }}\n---\n\n{{ text }}"


class Shared(
    ModelHubMixin,
    library_name="glann",
    pipeline_tag="unconditional-image-generation",
    tags=["glann", "glo", "imle", "image-generation"],
    model_card_template=TEMPLATE,
):
    """A generator as huggingface_hub saves and reads it.

    Parameters
    ----------
    generator
        The generator.
    files
        The content of the files that are saved beside it, by name.
    """

    def __init__(self, generator: Generator, files: Mapping[str, bytes] | None = None):
        self.generator = generator
        self.files = files or {}

    def _save_pretrained(self, save_directory: Path) -> None:
        self.generator.save(save_directory / GENERATOR)
        for name, content in self.files.items():
            (save_directory / name).write_bytes(content)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, revision: str | None, token: Any, compute: Compute | None = None, **_: Any
    ) -> "Shared":
        folder = Path(model_id)
        path = folder / GENERATOR if folder.is_dir() else download(model_id, revision, token)
        return cls(Generator.load(path, compute))


def save(generator: Generator, folder: Path, data: Path | None = None, repo_id: str | None = None) -> None:
    """Write into a folder what `push` publishes: all of it, or nothing.

    Parameters
    ----------
    generator
        The generator.
    folder
        A new folder, or one that was written by this function.
    data
        The folder data of the training, for the model card.
    repo_id
        The name that the card gives to the repository.

    Raises
    ------
    GlannError
        If the folder has other files, or `data` is not there or belongs to another generator.
    """
    check_folder(folder)
    if repo_id:
        check_name(repo_id)
    files = published(generator, data)
    text = card(generator, data, files, repo_id)
    with _told(str(folder)), all_or_none(folder) as inside:
        Shared(generator, files).save_pretrained(
            inside, config=_config(generator), model_card_kwargs={"text": text}
        )
    for name in OTHERS:
        if name not in files:
            (folder / name).unlink(missing_ok=True)


def push(
    generator: Generator, repo_id: str, data: Path | None, private: bool | None, token: str | None
) -> str:
    """Publish a generator on the Hub, and return the address of its page; for parameters see `Generator`."""
    check_name(repo_id)
    files = published(generator, data)
    text = card(generator, data, files, repo_id)
    with _told(repo_id):
        if private:
            _check_not_public(repo_id, token)
        Shared(generator, files).push_to_hub(
            repo_id,
            config=_config(generator),
            commit_message="A generator, published by glann",
            private=private,
            token=token,
            delete_patterns=[name for name in OTHERS if name not in files] or None,
            model_card_kwargs={"text": text},
        )
    return f"{constants.ENDPOINT}/{repo_id}"


def pull(source: str | Path, compute: Compute | None, revision: str | None, token: str | None) -> Generator:
    """Read a generator from a folder or from the Hub; for parameters see `Generator.from_pretrained`."""
    if Path(source).is_file():
        raise GlannError(f"{source}: a file, not a folder; read it with Generator.load")
    if not Path(source).is_dir():
        check_name(str(source), "no such folder, and ")
    with _told(str(source)):
        shared = Shared.from_pretrained(source, compute=compute, revision=revision, token=token)
    return shared.generator


def download(repo_id: str, revision: str | None = None, token: str | None = None) -> Path:
    """Return the generator file of a repository, downloaded unless the cache of the Hub has it."""
    check_name(repo_id)
    with _told(repo_id):
        return Path(hf_hub_download(repo_id, GENERATOR, revision=revision or None, token=token))


def check_name(repo_id: str, otherwise: str = "") -> None:
    """Refuse what cannot be the name of a repository."""
    try:
        validate_repo_id(repo_id)
        user, _, name = repo_id.partition("/")
    except errors.HFValidationError:
        user = name = ""
    if not user or not name:
        shown = " ".join(repo_id.split())[:100]
        raise GlannError(f"{shown or 'name'}: {otherwise}not a name on the Hub; use one such as user/faces")


def check_folder(folder: Path) -> None:
    """Refuse a folder in which files would be replaced that are not an earlier version of the same."""
    if folder.exists() and not folder.is_dir():
        raise GlannError(f"{folder}: a file; name a folder")
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    names = {name for name in names if not name.startswith(".")}
    if names and (names - {GENERATOR, CARD, CONFIG, *OTHERS} or not _is_our_card(folder / CARD)):
        raise GlannError(f"{folder}: has other files already; name a new folder")


def _is_our_card(path: Path) -> bool:
    try:
        return "library_name: glann" in path.read_text(encoding="utf-8").split("---")[1]
    except (OSError, ValueError, IndexError):
        return False


def _check_not_public(repo_id: str, token: str | None) -> None:
    """Refuse a repository that everybody can see: it would not become private."""
    try:
        private = HfApi(token=token).model_info(repo_id).private
    except errors.RepositoryNotFoundError:
        return  # it will be created
    if not private:
        raise GlannError(
            f"{repo_id}: exists already and is public; make it private in its settings at "
            f"{constants.ENDPOINT}/{repo_id}/settings, or use another name"
        )


def _config(generator: Generator) -> dict[str, Any]:
    """Return the architectures: for people who look, and for the Hub, which counts downloads of this file."""
    architectures = {"mapping": generator.mapping.architecture, "decoder": generator.decoder.architecture}
    return {name: architecture.model_dump() for name, architecture in architectures.items()}


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Turn what goes wrong between here and the Hub into one line; `name` is the repository or the folder."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # it would also log what is told here, and each new try
    try:
        yield
    except Exception as error:
        if isinstance(error, GlannError) or memory_ran_out(error):
            raise
        raise GlannError(f"{name}: {reason(error, constants.ENDPOINT)}") from error
    finally:
        logging.set_verbosity(before)
