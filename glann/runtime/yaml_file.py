"""Reading YAML files safely: a few hundred bytes can stand for billions of items; and writing YAML."""

import io
import warnings
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import YAMLError

from glann.errors import GlannError
from glann.runtime.validation import shown

MOST_MERGED = 1000  # keys that `<<` may merge into a mapping


class _Constructor(SafeConstructor):
    """ruamel's constructor, with a line number for every invalid value and limits on merging and printing."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Construct a value; impossible dates and numbers of thousands of digits are errors with a line."""
        try:
            return super().construct_object(node, deep)
        except (YAMLError, RecursionError):
            raise
        except Exception as error:
            what = shown(node.value) if isinstance(node.value, str) else f"a {node.id}"
            why = "too many digits" if "int_max_str_digits" in str(error) else error
            raise ConstructorError(None, None, f"{what}: {why}", node.start_mark) from None

    def check_mapping_key(self, node: Any, key_node: Any, mapping: Any, key: Any, value: Any) -> bool:
        """Refuse duplicate keys; ruamel would print both values in full."""
        if key in mapping:
            raise ConstructorError(None, None, f"found duplicate key {shown(key)}", key_node.start_mark)
        return True

    def flatten_mapping(self, node: Any) -> None:
        """Merge what `<<` refers to, within a limit: aliases of aliases grow exponentially."""
        super().flatten_mapping(node)
        if len(getattr(node, "merge", None) or ()) > MOST_MERGED:
            raise ConstructorError(None, None, f"<< merges more than {MOST_MERGED} keys", node.start_mark)


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file.

    Raises
    ------
    GlannError
        If it is not UTF-8 or not YAML; the message has the line.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        with warnings.catch_warnings():  # duplicate anchors are allowed
            warnings.simplefilter("ignore")
            return yaml.load(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise GlannError(f"{path}: not UTF-8 text") from None
    except OSError:
        raise
    except Exception as error:  # the parser also raises other errors, e.g. for deeply nested brackets
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())[:150]
        raise GlannError(f"{path}: {line}not YAML: {reason or type(error).__name__}") from None


def yaml_text(values: dict[str, Any]) -> str:
    """Return nested dictionaries of plain values as YAML."""
    text = io.StringIO()
    YAML().dump(values, text)
    return text.getvalue()


def yaml_editor() -> YAML:
    """Return a reader and writer of settings that keeps comments."""
    yaml = YAML()
    yaml.width = 110
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(
        type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml
