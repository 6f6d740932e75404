"""prepare: turn images into two arrays, for training and for evaluation."""

from pathlib import Path

from stages.frame import stage

with stage("prepare") as this:
    from glann.errors import GlannError
    from glann.inputs.digests import pictures
    from glann.prepare.dataset import prepare
    from glann.runtime.files import load_json

    noted = Path("data/inputs/pictures.json")
    with this.outputs() as folder:
        prepare(this.params.prepare, this.params.seed, folder)
        now = pictures(this.params.prepare, this.project / ".cache/inputs.sqlite")
        if noted.is_file() and load_json(noted) != now:
            raise GlannError(
                f"prepare.path: {this.params.prepare.path} changed while prepare ran, and DVC would record "
                "that as used; nothing was written: run dvc repro when it is complete"
            )
