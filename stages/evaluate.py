"""evaluate: compare reconstructions and samples with images never used in training."""

from stages.frame import stage

with stage("evaluate") as this:
    from glann.evaluate.evaluation import evaluate
    from glann.evaluate.report import print_table, write_report
    from glann.runtime.checkpoint_files import remove_finished
    from glann.runtime.npy import load_latents
    from glann.sample.generator import Generator

    remove_finished(this.checkpoints, "imle")
    generator = Generator.load("data/imle/generator.safetensors", this.params.compute)
    latents = load_latents("data/glo/latents.npy", generator.decoder.architecture.latents)
    images, holdout = this.prepared("images"), this.prepared("holdout")
    with this.outputs() as folder:
        evaluation = evaluate(this.params.evaluate, this.params.seed, images, holdout, latents, generator)
        write_report(evaluation, holdout, folder)
        print_table(evaluation)
