"""Load a YAML file of options. Values stay text, and the size of the file is limited.

YAML 1.1 reads 010 as 8, 1:30 as 90 and 1_0 as 10. As text, a number means the same as on the command line.
"""

import codecs
import itertools
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UsageError
from utils.files import irregular
from utils.text import escaped

# Limits far above any configuration, against files that would fill the memory.
BYTES = 250_000  # of the file
NODES = 5_000  # values in the file
DEPTH = 20  # levels of nested lists and mappings
CHARACTERS = 250_000  # with every alias replaced by its content
NULLS = ("null", "Null", "NULL", "~")
TAG = "tag:yaml.org,2002:"


class Bare(str):
    """Unquoted YAML scalar, such as 0.10 or true, kept as text.

    Messages show this text without quotes.
    """

    def __repr__(self) -> str:
        return str(self) if self.isprintable() else super().__repr__()


class Loader(yaml.SafeLoader):
    """YAML loader that returns numbers, dates and truth values as text.

    It also limits size and nesting.
    """

    yaml_constructors = {  # noqa: RUF012 (as in yaml itself)
        f"{TAG}map": yaml.SafeLoader.construct_yaml_map,
        f"{TAG}seq": yaml.SafeLoader.construct_yaml_seq,
        **dict.fromkeys((f"{TAG}str", f"{TAG}value", f"{TAG}merge"), yaml.SafeLoader.construct_yaml_str),
        f"{TAG}null": lambda loader, node: Bare("~") if loader.construct_scalar(node) == "~" else None,
        **dict.fromkeys(
            (f"{TAG}{kind}" for kind in ("int", "float", "bool", "timestamp")),
            lambda loader, node: Bare(loader.construct_scalar(node)),
        ),
        None: yaml.SafeLoader.construct_undefined,
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.nodes, self.depth = 0, 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.nodes, self.depth = self.nodes + 1, self.depth + 1
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if self.nodes > NODES:
            raise _error(f"it holds more than {NODES:,} values", event)
        if self.depth > DEPTH:
            raise _error(f"it is more than {DEPTH} levels deep", event)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _error("a list or a mapping cannot be a key", key)
            if (name := key.value.replace("-", "_")) in names:
                raise _error(f"key {name[:100]!r} is given twice", key)
            names.add(name)
        return super().construct_mapping(node, deep)


def _error(problem: str, place: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


def _expanded_length(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the length of a YAML node with every alias replaced by its content.

    The length is in characters. `known` caches the results by the id of the node. Raises MarkedYAMLError if the length
    exceeds CHARACTERS, as it does for a node that contains itself.
    """
    if id(node) not in known:
        known[id(node)] = CHARACTERS  # for a node that contains itself
        parts = itertools.chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
        is_scalar = isinstance(node, yaml.ScalarNode)
        known[id(node)] = 1 + (len(node.value) if is_scalar else sum(_expanded_length(part, known) for part in parts))
    if known[id(node)] > CHARACTERS:
        raise _error(f"its aliases (*name) expand to more than {CHARACTERS:,} characters", node)
    return known[id(node)]


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Read a YAML file of options and return their values and line numbers.

    Both are dicts by option name. Hyphens in names become underscores. A value is text as written (a `Bare` for a
    number, date or truth value), None for null, a list or a dict. Raises UsageError with the file and the line.
    """
    try:
        loader = Loader(_text(Path(path)))
        node = loader.get_single_node()
        if node is not None:
            _expanded_length(node, {})
        content = None if node is None else loader.construct_document(node)
        if not isinstance(content, dict):
            raise ValueError(
                "it is empty" if content is None else f"it has no `key: value` lines, but {content!r:.100}"
            )
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "strerror", None) or getattr(error, "problem", None) or " ".join(str(error).split())
        line = f", line {mark.line + 1}" if mark else ""
        advice = "leave one out" if "given twice" in reason else "pass a YAML file"
        raise UsageError(f"config: {path}{line} cannot be read: {escaped(reason, 300)}; {advice}") from error
    assert isinstance(node, yaml.MappingNode)
    lines = {key.value.replace("-", "_"): key.start_mark.line + 1 for key, _ in node.value}
    return {str(key).replace("-", "_"): value for key, value in content.items()}, lines


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of options and return their values by name.

    Raises UsageError if the file is invalid.
    """
    return read(path)[0]


def _text(path: Path) -> str:
    """Return the text of a file.

    Raises OSError, or ValueError if the file is too large or is not UTF-8 text.
    """
    if (fault := irregular(path)) and not str(path).startswith(("/dev/fd/", "/proc/")):  # of a shell's <(command)
        raise ValueError(f"it {fault}")
    with path.open("rb") as file:
        content = file.read(BYTES + 1)
    if len(content) > BYTES:
        raise ValueError(f"it has more than {BYTES:,} bytes; a configuration has a few thousand")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("it is UTF-16; it must be UTF-8")
    if b"\0" in content:
        raise ValueError("it is not text: it has a zero byte")
    return content.removeprefix(codecs.BOM_UTF8).decode()
