"""The project's own promises: layout, dvc.yaml against the import graph, generated files."""

import ast
import json

import grimp
import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from glann.params import Params
from glann.peers.settings import Peers
from glann.presets import commented_yaml, params_yaml, preset
from glann.runtime.files import STAGES

DVC = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
PEERS = YAML(typ="safe").load((ROOT / "peers/dvc.yaml").read_text())
GRAPH = grimp.build_graph("glann")
ONLY_CHECKS = "glann.params"  # refuses wrong settings; a stage's own section comes from its own package


def deps_of(stage: str, pipeline: dict = DVC) -> list[str]:
    return [dep for dep in pipeline["stages"][stage]["deps"] if dep.startswith("glann/")]


def path_of(module: str) -> str:
    path = module.replace(".", "/")
    return f"{path}/__init__.py" if (ROOT / path).is_dir() else f"{path}.py"


def modules_reached(stage: str, package: str = "") -> set[str]:
    """The files of all modules that a stage's script and frame import, directly or not."""
    scripts = [ROOT / "stages" / f"{stage}.py", *(ROOT / "stages/frame").glob("*.py")]
    found = {
        node.module
        for script in scripts
        for node in ast.walk(ast.parse(script.read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("glann")
    }
    found.add(f"glann.{package or stage}.settings")  # by its name, for what to advise if memory runs out
    todo, reached = [*found - {ONLY_CHECKS}], set()
    while todo:
        module = todo.pop()
        reached.add(module)
        imported = GRAPH.find_modules_directly_imported_by(module)
        todo += [other for other in imported if other not in reached | {"glann", ONLY_CHECKS}]
    return {path_of(module) for module in reached}


def lies_below(path: str, dep: str) -> bool:
    return path == dep or path.startswith(f"{dep}/")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_all_modules_that_it_reaches_and_lists_nothing_else(stage: str):
    reached, deps = modules_reached(stage), deps_of(stage)
    assert len(reached) > 10
    assert not [path for path in reached if not any(lies_below(path, dep) for dep in deps)]
    assert not [dep for dep in deps if not any(lies_below(path, dep) for path in reached)]
    own = {str(path.relative_to(ROOT)) for path in (ROOT / "glann" / stage).glob("*.py")}
    listed = {path for path in own if any(lies_below(path, dep) for dep in deps)}
    assert own == listed and own - {f"glann/{stage}/__init__.py"} <= reached


@pytest.mark.parametrize("stage", [name for name in PEERS["stages"] if name != "foreign"])
def test_a_stage_of_the_rivals_depends_on_all_modules_that_it_reaches_and_lists_nothing_else(stage: str):
    reached, deps = modules_reached(f"peers/{stage}", "peers"), deps_of(stage, PEERS)
    assert len(reached) > 10
    assert not [path for path in reached if not any(lies_below(path, dep) for dep in deps)]
    assert not [dep for dep in deps if not any(lies_below(path, dep) for path in reached)]
    assert f"stages/peers/{stage}.py" in PEERS["stages"][stage]["deps"]


def test_no_stage_of_the_main_pipeline_reaches_the_rivals():
    for stage in STAGES:
        assert not [path for path in modules_reached(stage) if lies_below(path, "glann/peers")]


def test_the_settings_of_the_rivals_are_the_defaults():
    assert (ROOT / "peers/params.yaml").read_text() == commented_yaml(Peers())


def test_no_stage_depends_on_the_package_of_a_later_one():
    for i, stage in enumerate(STAGES):
        for later in STAGES[i + 1 :]:
            assert not [dep for dep in deps_of(stage) if lies_below(dep, f"glann/{later}")]


def test_packages_hold_nothing_but_their_docstring():
    """Importing one of their modules runs it, and it is no dependency of the stages that do."""
    for path in (ROOT / "glann").glob("*/**/__init__.py"):
        assert len(ast.parse(path.read_text()).body) == 1, path


def test_each_stage_has_its_name_in_seven_places():
    assert tuple(DVC["stages"]) == ("inputs", *STAGES)
    for stage in STAGES:
        entry = DVC["stages"][stage]
        assert entry["cmd"] == f"python -m stages.{stage}"
        assert {f"stages/{stage}.py", "stages/frame", f"glann/{stage}"} <= {*entry["deps"]}
        assert (ROOT / "stages" / f"{stage}.py").is_file() and (ROOT / "glann" / stage).is_dir()
        assert (ROOT / "docs" / f"{stage}.md").is_file() and [*(ROOT / "tests" / stage).glob("test_*.py")]
        assert stage in entry["params"] and stage in Params.model_fields
        assert Params.model_fields[stage].annotation.__module__ == f"glann.{stage}.settings"
        outs = [path for out in entry["outs"] for path in ([out] if isinstance(out, str) else out)]
        assert all(path.startswith(f"data/{stage}/") for path in outs)


def test_how_a_run_is_executed_invalidates_nothing():
    assert all("compute" not in entry.get("params", []) for entry in DVC["stages"].values())


def test_no_key_has_a_name_that_dvcs_run_cache_leaves_out():
    """DVC drops entries called size and nfiles before it hashes a run: their change would go unnoticed."""

    def keys(values: object) -> set[str]:
        if isinstance(values, dict):
            return set(values).union(*map(keys, values.values()))
        return set()

    assert not keys(Params().model_dump()) & {"size", "nfiles"}


def test_params_yaml_is_the_default_preset():
    assert (ROOT / "params.yaml").read_text() == params_yaml(preset("avatars"))


def test_the_schema_for_editors_is_up_to_date():
    assert json.loads((ROOT / "docs/params.schema.json").read_text()) == Params.model_json_schema()


def test_dvc_reports_nothing_home():
    assert "analytics = false" in (ROOT / ".dvc/config").read_text()
