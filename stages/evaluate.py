"""evaluate: compare reconstructions and samples with images never used in training."""

from stages.frame import stage

with stage("evaluate") as this:
    from glann.evaluate.evaluation import evaluate
    from glann.evaluate.report import print_table, write_report
    from glann.images.classes import load_classes
    from glann.runtime.checkpoint_files import remove_finished
    from glann.runtime.files import load_json
    from glann.runtime.npy import load_latents
    from glann.runtime.yaml_file import yaml_text
    from glann.sample.generator import Generator
    from glann.sample.hub.files import of_the_result

    remove_finished(this.checkpoints, "imle")
    generator = Generator.load("data/imle/generator.safetensors", this.params.compute)
    latents = load_latents("data/glo/latents.npy", generator.decoder.architecture.latents)
    images, holdout = this.prepared("images"), this.prepared("holdout")
    classes = load_classes("data/prepare/classes.json")
    losses = {name: load_json(f"data/{name}/losses.json") for name in ("glo", "imle")}
    settings = yaml_text(of_the_result(this.params.model_dump()))
    with this.outputs() as folder:
        evaluation = evaluate(
            this.params.evaluate, this.params.seed, images, holdout, latents, generator, classes
        )
        write_report(evaluation, holdout, losses, settings, folder)
        print_table(evaluation)
