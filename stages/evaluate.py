"""evaluate: reconstructions and samples are measured against images never trained on."""

from stages.frame import stage

with stage("evaluate") as this:
    from glann.checkpoints import remove_finished
    from glann.evaluate import evaluate
    from glann.generator import Generator
    from glann.imle import load_latents

    remove_finished(this.checkpoints, "imle")
    generator = Generator.load("data/imle/generator.safetensors", this.params.compute)
    latents = load_latents("data/glo/latents.npy", generator.decoder.architecture.latents)
    images, holdout = this.prepared("images"), this.prepared("holdout")
    with this.outputs() as folder:
        evaluate(
            this.params,
            images=images,
            holdout=holdout,
            latents=latents,
            generator=generator,
            folder=folder,
        )
