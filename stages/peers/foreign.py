"""foreign: note the content of the file of foreign pictures, so that DVC sees when it changes."""

from pathlib import Path

from stages.frame import stage
from stages.frame.dvc import Place

with stage(Place("foreign", Path("data/peers/foreign"), "peers", Path("peers/dvc.yaml"))) as this:
    from glann.errors import GlannError
    from glann.inputs.digests import of_file
    from glann.params import load_settings
    from glann.peers.settings import Peers
    from glann.runtime.files import save_json

    path = this.located(load_settings("peers/params.yaml", Peers).foreign)
    found = of_file(path, this.project / ".cache/inputs.sqlite")
    if found is None:
        raise GlannError(
            f"peers/params.yaml: foreign: {path}: there is no such file; correct it, or use null"
        )
    if path:
        from glann.peers.runs import open_foreign

        open_foreign(path)
    with this.outputs() as folder:
        save_json(folder / "input.json", found)
