"""evaluate: reconstructions and samples are measured against images never trained on."""

from stages.frame import stage

with stage("evaluate") as this:
    from glann.checkpoints import remove_finished
    from glann.evaluate import evaluate
    from glann.generator import Generator
    from glann.imle import load_latents
    from glann.storage import load_npy

    remove_finished(this.checkpoints, "imle")
    with this.outputs() as folder:
        evaluate(
            this.params,
            images=load_npy("data/prepare/images.npy", mmap=True),
            holdout=load_npy("data/prepare/holdout.npy", mmap=True),
            latents=load_latents("data/glo/latents.npy"),
            generator=Generator.load("data/imle/generator.safetensors", this.params.compute),
            folder=folder,
        )
