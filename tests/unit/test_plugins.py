"""Plug-ins: what a file may register, the options that it adds, its digest, and the messages about its errors."""

from pathlib import Path
from typing import Any

import pytest
import torch

import args
import models
from models.constraints import CONV_TYPES, Constraint, constrain, layer_counts
from models.registry import ARCHS
from utils import exit_codes, plugin_files
from utils.config import plugins
from utils.config.options import FIELDS
from utils.errors import UsageError

NET = '''
from torch import nn
from utils.config.plugins import register_arch

@register_arch("MyNet")
def my_net(*, num_classes, in_shape, width: int = 64, kind: "str" = "plain", depths: tuple[int, ...] = (1, 2)):
    """Return a network.

    width: channels of the
        first layer.
    """
    channels, height, side = in_shape
    return nn.Sequential(nn.Conv2d(channels, width, 1), nn.Flatten(), nn.Linear(width * height * side, num_classes))
'''
pytestmark = pytest.mark.usefixtures("registries")
DENSE = {"arch": "MyNet", "set": "digits"}


@pytest.fixture
def plugin(tmp_path: Path):
    """Return a function that writes a plug-in and returns its path."""

    def write(text: str = NET, name: str = "my_ideas.py") -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def parse(tmp_path: Path):
    """Return a function that writes a YAML file with some values and parses it with the words of a command line."""

    def parsed(values: dict[str, Any], *words: str) -> args.Options:
        path = tmp_path / "own.yml"
        path.write_text("".join(f"{name}: {value}\n" for name, value in values.items()))
        return args.parse(["--config", str(path), *words])

    return parsed


def problem(action: Any, *arguments: Any, **more: Any) -> str:
    with pytest.raises(UsageError) as caught:
        action(*arguments, **more)
    return str(caught.value)


# options of plug-ins


def test_keyword_arguments_become_options_with_type_default_and_help(plugin, parse) -> None:
    path = plugin()
    assert parse(DENSE, "--plugin", path).value("width") == 64
    options = parse({**DENSE, "width": 8, "plugins": f"[{path}]"}, "--kind", "other", "--depths", "3,4")
    assert (options.value("width"), options.value("kind"), options.value("depths")) == (8, "other", (3, 4))
    lines = " ".join(args.help_text().split())
    assert (
        "Plug-in options:" in lines and "channels of the first layer [an int; default: 64; needs arch MyNet]" in lines
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--width", "2.5"], "width: '2.5' on the command line, but it must be an int"),
        (["--widht", "2"], "--widht: unknown option on the command line (did you mean '--width'?)"),
        (["--arch", "MyNot"], "(did you mean 'MyNet'?)"),
    ],
)
def test_a_wrong_value_of_a_plug_ins_option_is_an_error_as_for_every_option(plugin, parse, words, message) -> None:
    assert message in problem(parse, DENSE, "--plugin", plugin(), *words)


def test_an_option_of_a_part_that_is_not_selected_causes_a_warning_and_is_not_stored(plugin, parse) -> None:
    options = parse({**DENSE, "arch": "FC"}, "--plugin", plugin(), "--width", "5")
    assert options.warnings == ("width: '5' on the command line has no effect without arch MyNet",)
    assert "width" not in options.flat()


def test_stored_options_of_a_plug_in_are_read_back(plugin, parse) -> None:
    options = parse(DENSE, "--plugin", plugin(), "--width", "5")
    assert args.from_flat(options.flat()) == options and options.flat()["width"] == 5
    assert args.training_changes(options, options.replace(width=6)) == ["width: 5 in the run, 6 now"]


def test_a_constructor_without_bn_type_has_no_such_option(plugin, parse) -> None:
    warnings = parse(DENSE, "--plugin", plugin(), "--bn-type", "AffineBatchNorm", "--width-mult", "2").warnings
    assert [line.split(" has no effect without ")[1].split()[0] for line in warnings] == ["arch", "an"]
    assert (
        models.build("MyNet", num_classes=3, in_shape=(1, 4, 4), bn_type="AffineBatchNorm", width=2)[0].out_channels
        == 2
    )


def test_plug_ins_of_the_file_and_of_the_command_line_are_both_loaded(plugin, parse, monkeypatch) -> None:
    first = plugin()
    second = plugin(NET.replace("MyNet", "Other").replace("width", "breadth"), "other.py")
    monkeypatch.syspath_prepend(str(Path(second).parent))
    options = parse({**DENSE, "plugins": first}, "--plugin", "other", "--breadth", "3", "--arch", "Other")
    assert [text.partition("#")[0] for text in options.run.plugins] == [first, "other"]
    assert options.value("breadth") == 3


def test_a_literal_annotation_limits_the_values(parse) -> None:
    register(num_classes="int", flavour='Literal["a", "b"] = "a"')
    assert "it must be one of a, b" in problem(parse, {"arch": "X", "set": "digits"}, "--flavour", "c")
    assert parse({"arch": "X", "set": "digits"}, "--flavour", "b").value("flavour") == "b"


# registrations that are refused


def register(name: str = "X", **arguments: Any) -> None:
    signature = ", ".join(f"{key}: {getattr(kind, '__name__', kind)}" for key, kind in arguments.items())
    space: dict[str, Any] = {}
    exec(f"from typing import Literal\ndef make(*, {signature}): ...", space)
    space["make"].__module__ = __name__
    plugins.register_arch(name)(space["make"])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Conv4", {"num_classes": "int"}, "arch: Conv4 exists already, in this program; choose another name"),
        ("a b", {"num_classes": "int"}, "arch: 'a b' is no name"),
        ("X", {"width": "int = 1"}, "arch X: its constructor must take num_classes"),
        ("X", {"num_classes": "int", "width": "int"}, "arch X: width has no default"),
        ("X", {"num_classes": "int", "width": "dict = None"}, "arch X: width has the type dict; annotate it as bool"),
        ("X", {"num_classes": "int", "width": "int = 1.5"}, "arch X: width has the default 1.5, but it must be an int"),
        ("X", {"num_classes": "int", "epochs": "int = 3"}, "arch X: epochs is already an option with another use"),
        ("X", {"num_classes": "int", "dropout": "float = 0.5"}, "arch X: dropout is already an option: a float"),
        ("X", {"num_classes": "int", "width": "'Unknown' = 1"}, "arch X: its signature cannot be read"),
    ],
)
def test_a_part_that_cannot_be_registered_is_an_error_with_a_reason(name, arguments, message) -> None:
    before = dict(ARCHS), dict(FIELDS)
    assert problem(register, name, **arguments).startswith(message)
    assert (dict(ARCHS), {*FIELDS}) == (before[0], {*before[1]})


def test_a_part_may_share_an_option_with_a_part_that_has_the_same_default(parse) -> None:
    register(num_classes="int", dropout="float = 0.0")
    assert parse({"arch": "X", "set": "digits"}, "--dropout", "0.3").warnings == ()


def test_a_part_can_be_registered_again_from_the_same_file(parse) -> None:
    register(num_classes="int", width="int = 1")
    register(num_classes="int", breadth="int = 2")
    assert "width" not in FIELDS and FIELDS["breadth"].default == 2


def test_two_plug_ins_cannot_register_the_same_name(plugin) -> None:
    first = plugin()
    plugin_files.load([first])
    message = problem(plugin_files.load, [plugin(NET + "\n", "other.py")])
    assert "MyNet exists already, in " + first in message and "other.py, line 5" in message


# errors of plug-ins

BROKEN = {
    "import nothing_here\n": "my_ideas.py, line 1: ModuleNotFoundError: No module named 'nothing_here'",
    "x = 1\n1 / 0\n": "my_ideas.py, line 2: ZeroDivisionError: division by zero",
    "x = (\n": "my_ideas.py, line 1: SyntaxError: '(' was never closed",
    "raise KeyError\n": "my_ideas.py, line 1: KeyError",
}


@pytest.mark.parametrize("text", BROKEN)
def test_an_error_while_a_plug_in_is_loaded_is_one_line_with_its_place(plugin, program, text) -> None:
    code, _, error = program("--config", "none.yml", "--plugin", plugin(text))
    assert code == 2 and error.count("\n") == 1
    assert BROKEN[text] in error and error.rstrip().endswith("--debug prints the traceback")


def test_debug_prints_the_traceback(plugin, program) -> None:
    code, _, error = program("--plugin", plugin("1 / 0\n"), "--debug")
    assert code == 2 and "Traceback" in error and 'my_ideas.py", line 1' in error


def test_an_error_of_a_plug_in_during_training_names_its_line(plugin, program, config) -> None:
    path = plugin(NET.replace("return nn.Sequential(", "return Bad(") + "\nclass Bad(nn.Sequential):\n"
                  "    def forward(self, x):\n        if self.training and x.shape[0] > 1:\n"
                  "            raise TypeError('no')\n        return super().forward(x)\n")  # fmt: skip
    ticket = config(conv_type=None, freeze_weights=None, prune_rate=None)
    code, _, error = program("--config", ticket, "--plugin", path, "--arch", "MyNet", "--width", 2)
    assert (
        code == 1 and error.splitlines()[-1] == f"failed: {path}, line 18: TypeError: no; --debug prints the traceback"
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("missing.py", "plugins: missing.py cannot be read: No such file or directory"),
        (".", "plugins: there is no module '.'"),
        ("no.such.module", "plugins: there is no module 'no.such.module'"),
        ("math", "plugins: there is no module 'math'; pass the path of a .py file"),
        ("$NOWHERE/a.py", "the variable $NOWHERE is not set"),
    ],
)
def test_a_plug_in_that_does_not_exist_is_an_error(program, value, message) -> None:
    code, _, error = program("--config", "none.yml", "--plugin", value)
    assert code == 2 and message in error and error.count("\n") == 1


def test_a_folder_in_place_of_a_plug_in_is_an_error(program, tmp_path) -> None:
    (tmp_path / "folder.py").mkdir()
    code, _, error = program("--plugin", tmp_path / "folder.py")
    assert code == 2 and "is a directory" in error


FAULTS = {  # faulty line of the network -> message
    "nn.Linear(width * height * side, 4)": "arch MyNet: its output for 2 images has the shape (2, 4); (2, 10) expected",
    "nn.Linear(5, num_classes)": "arch MyNet: it fails for images of shape (2, 1, 8, 8): mat1 and mat2",
    "too_small()": "my_ideas.py, line 13: NameError: name 'too_small' is not defined",
    "nn.Linear(0, 1 / 0)": "my_ideas.py, line 13: ZeroDivisionError: division by zero",
}
LINEAR = "nn.Linear(width * height * side, num_classes)"


@pytest.mark.parametrize("line", FAULTS)
def test_a_network_that_cannot_be_trained_is_an_error_before_training(plugin, program, config, line) -> None:
    ticket = config(conv_type=None, freeze_weights=None, prune_rate=None)
    path = plugin(NET.replace(LINEAR, line))
    code, _, error = program("--config", ticket, "--plugin", path, "--arch", "MyNet")
    assert code == 2 and FAULTS[line] in error and error.count("\n") == 1


# digests


def test_a_stored_plug_in_must_be_unchanged(plugin) -> None:
    (stored,) = plugin_files.load([path := plugin()])
    assert plugin_files.load([stored]) == (stored,)
    plugin(NET + "# changed\n")
    assert problem(plugin_files.load, [stored]).startswith(f"plugins: {path} has changed: ")


def test_a_stored_plug_in_may_have_moved(plugin) -> None:
    (stored,) = plugin_files.load([path := plugin()])
    Path(path).unlink()
    assert plugin_files.load([stored, plugin(name="moved.py")]) == (stored,)


def test_stored_options_do_not_execute_a_plug_in(plugin, parse) -> None:
    flat = parse(DENSE, "--plugin", path := plugin()).flat()
    plugin_files._loaded.clear()
    message = problem(args.from_flat, flat)
    assert message == f"plugins: the run needs {path}, which is not executed unless you name it: --plugin {path}"
    plugin_files.load([plugin(NET + "# changed\n")])
    assert args.from_flat(flat).value("width") == 64 and plugin_files.other_versions(flat["plugins"]) == [path]


def test_runs_are_compared_by_the_digests_of_their_plug_ins(plugin, parse) -> None:
    options = parse(DENSE, "--plugin", path := plugin())
    moved = options.replace(plugins=tuple(text.replace("my_ideas", "moved") for text in options.run.plugins))
    assert args.training_changes(options, moved) == []
    (change,) = args.training_changes(options, parse(DENSE, "--plugin", plugin(NET + "# changed\n")))
    assert change.startswith(f"plugins: ('{path}#sha256:")


# constraints of plug-ins


class Halves(Constraint):
    """Every second weight, with noise; it has neither an __init__ nor a count."""

    def forward(self, weight):
        return weight * (torch.arange(weight.numel()).view_as(weight) % 2) * (1 + torch.rand(()))


def test_a_constraint_needs_only_forward_and_its_kept_weights_are_counted() -> None:
    plugins.register_constraint("Halves")(Halves)
    net = constrain(models.build("FC", num_classes=4, in_shape=(1, 4, 4)), "Halves")
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert [(c.kept, c.total) for c in layer_counts(net)][-1] == (200, 400)
    assert torch.equal(torch.get_rng_state(), state) and all(module.training for module in net.modules())


def test_the_density_of_a_constraint_follows_from_its_signature() -> None:
    class Needs(Constraint):
        def __init__(self, weight, *, density, generator): ...

    class May(Constraint):
        def __init__(self, weight, density=0.5): ...

    plugins.register_constraint("Needs")(Needs)
    plugins.register_constraint("May")(May)
    assert [CONV_TYPES[name].density for name in ("Needs", "May")] == ["required", "optional"]
    assert (CONV_TYPES["Needs"].options, CONV_TYPES["May"].options) == ((), ())


def test_an_error_outside_plug_ins_is_still_raised() -> None:
    def fail() -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        exit_codes.run_program(fail)


# the examples


def test_the_effective_weights_of_the_ternary_example_are_exactly_ternary() -> None:
    plugin_files.load([str(Path(__file__).parents[2] / "examples/ternary_constraint.py")])
    network = torch.nn.Sequential(torch.nn.Linear(100, 50))
    constrain(network, "Ternary", threshold=0.7)
    layer: Any = network[0]
    with torch.no_grad():
        layer.weight.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    effective = layer.constraint(layer.weight)
    effective.sum().backward()
    low, zero, high = effective.unique().tolist()
    assert (low, zero) == (-high, 0) and torch.equal(layer.weight.grad, torch.ones(50, 100))
