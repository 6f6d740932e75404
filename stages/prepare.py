"""prepare: turn images into two arrays, for training and for evaluation."""

from stages.frame import stage

with stage("prepare") as this:
    from glann.prepare.dataset import prepare

    with this.outputs() as folder:
        prepare(this.params.prepare, this.params.seed, folder)
