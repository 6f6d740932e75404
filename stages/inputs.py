"""inputs: note the content of pictures and weights, so that DVC sees when they change."""

from typing import Any, NamedTuple

from stages.frame import stage


class Input(NamedTuple):
    """Something that lies outside the project."""

    content: dict[str, Any] | None
    """what is noted of it; None: it is not there"""
    path: str | None
    keys: list[str]
    """settings that make the stage that reads it run again, so that it must be there, or whether it fits"""
    check: str
    """the function of `glann.preflight` that looks at it"""


with stage("inputs") as this:
    from glann.glo.settings import EARLIER_FILES
    from glann.inputs.digests import of_file, of_files, pictures
    from glann.runtime.console import say
    from glann.runtime.files import load_json, save_json
    from stages.frame.dvc import recorded
    from stages.frame.running import at

    prepare, glo, imle, evaluate = (getattr(this.params, n) for n in ("prepare", "glo", "imle", "evaluate"))
    known = this.project / ".cache/inputs.sqlite"
    source, earlier = prepare.path, glo.start_from
    learning = glo.loss.weights if glo.loss.kind == "perceptual" else None
    measuring = evaluate.weights if evaluate.features != "pixels" else None
    of_source, of_earlier = pictures(prepare, known), of_files(earlier, EARLIER_FILES, known)
    of_mapping = of_file(imle.start_from, known)
    keys_of_measuring = ["evaluate.weights", "evaluate.features"]
    inputs = {
        "pictures": Input(of_source, source, ["prepare.path", "prepare.labels"], "check_pictures"),
        "glo_weights": Input(of_file(learning, known), learning, ["glo.loss"], "check_loss_weights"),
        "glo_start": Input(of_earlier, earlier, ["seed", "prepare", "glo"], "check_start"),
        "imle_start": Input(of_mapping, imle.start_from, ["seed", "prepare", "glo", "imle"], "check_mapping"),
        "evaluate_weights": Input(
            of_file(measuring, known), measuring, keys_of_measuring, "check_evaluation_weights"
        ),
    }
    # evaluate records the other stages' sections too, perhaps older ones: theirs come later and win
    before: dict[str, Any] = {}
    for name in ("evaluate", "prepare", "glo", "imle"):
        before |= recorded(name)
    changed: dict[str, Input] = {}
    suspect: list[Input] = []
    for name, found in inputs.items():
        file = this.place.folder / f"{name}.json"
        noted = load_json(file) if file.is_file() else None
        as_recorded = all(at(before, key) == at(this.settings, key) for key in found.keys)
        if found.content is None and noted and as_recorded:
            # Results that are there stay valid without their inputs, e.g. in a colleague's clone.
            say(f"inputs: {found.path} is not there; taken to be as it was")
            continue
        if found.content != noted:
            changed[name] = found
        if found.content != {} and (found.content != noted or not as_recorded):
            suspect.append(found)
    if suspect:
        from glann import preflight

        for found in suspect:  # an hour of training must not come before the news that a file is wrong
            getattr(preflight, found.check)(this.params)
    with this.outputs() as folder:
        for name, found in changed.items():
            save_json(folder / f"{name}.json", found.content)
