"""sample: draw pictures with the generator."""

from stages.frame import stage

with stage("sample") as this:
    from glann.runtime.checkpoint_files import remove_finished
    from glann.sample.generator import Generator
    from glann.sample.saving import draw_samples

    remove_finished(this.checkpoints, "imle")
    generator = Generator.load("data/imle/generator.safetensors", this.params.compute)
    with this.outputs() as folder:
        draw_samples(generator, this.params.sample, folder)
