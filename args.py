"""Parse the command line and its YAML file into `Options`. Flags override the file; the file overrides defaults."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path, PurePath
from types import SimpleNamespace
from typing import Any

from utils import process_setup
from utils.config.biprop import ALIASES, DEAD, FOLDERS, RENAMED, is_foreign_folder
from utils.config.checks import Given, failures
from utils.config.contradictions import ERRORS
from utils.config.effects import MISSING_EFFECTS, row_checks
from utils.config.fields import cast
from utils.config.help_text import help_text
from utils.config.options import FIELDS, Options
from utils.config.reader import BUT, IN_CALL, TYPED, Reader, typed_values
from utils.config.run_option_groups import RUNS
from utils.config.yaml_loader import read
from utils.errors import UsageError
from utils.paths import expanded, stem
from utils.plugin_files import DEBUG, check_loaded, digests_of
from utils.plugin_files import load as load_plugins
from utils.run_paths import locate_run
from utils.text import combined_error, shown

__all__ = ["FIELDS", "Options", "differs", "from_call", "from_flat", "help_text", "parse", "training_changes"]


def parse(argv: Sequence[str]) -> Options:
    """Return the checked options of a run, from the command line and a YAML file.

    `argv` is the command line. --config names the file, or --resume names a run with its config.yaml. The plug-ins that
    they name are executed first, because they may add options. With -h or --help, the help is printed and the process
    exits. Raises UsageError with one line per problem.
    """
    argv = [word for word in argv if word != DEBUG]
    typed = typed_values({name: FIELDS[name] for name in ("config", "resume", "plugins")}, argv)
    file = _config_file(typed, TYPED)
    plugins = _load_plugins(file, typed)
    if {"-h", "--help"} & {*argv}:
        with contextlib.suppress(OSError):  # `--help | head`, a full disk
            print(help_text(), flush=True)
            raise SystemExit(0)
        os._exit(0)  # a regular exit would flush the broken stream again and print an error
    reader = Reader(FIELDS, DEAD, RENAMED)
    reader.command_line(argv)
    return _with_file(reader, file, plugins, TYPED)


def from_call(config: str | Path | None, values: Mapping[str, object]) -> Options:
    """Return the checked options of a run that is started in Python.

    config: a YAML file of options, or None. values: options by name, as Python values, which override the file. Without
    a file, and without `resume` of a run, they are all options of the run. It is then named by its arch and set. Raises
    UsageError with one line per problem.
    """
    given = {"config": config, **values} if config is not None else values
    typed = {name: [_without_paths(value)] for name, value in given.items()}
    file = _config_file(typed, IN_CALL) if {"config", "resume"} & typed.keys() else ConfigFile()
    plugins = _load_plugins(file, typed)
    reader = Reader(FIELDS, DEAD, RENAMED)
    reader.typed, reader.chosen = typed, {*typed}
    options = _with_file(reader, file, plugins, IN_CALL)
    return options.replace(name=options.run.name or f"{options.model.arch}-{options.data.set}")


def _without_paths(value: object) -> object:
    """Return a value in which every path, also in a list, is text."""
    if isinstance(value, list | tuple):
        return [_without_paths(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value


def _with_file(reader: Reader, file: "ConfigFile", plugins: tuple[str, ...], source: str) -> Options:
    """Return the checked options of a YAML file and of `reader.typed`, which overrides the file.

    `plugins` are the loaded plug-ins. `source`, such as "on the command line", says in messages where the options of
    `reader.typed` come from.
    """
    if file.error:
        reader.problems.append(file.error)
        reader.bad |= FIELDS.keys() - reader.typed.keys()  # no check reads them: the file may set them
    elif file.path:
        reader.take("config", file.path, source)  # a run's config.yaml replaces this by the original file
        _take_file(reader, file)
    for name, values in reader.typed.items():
        for value in values if name != "config" else []:
            reader.take(name, value, source)
    if "plugins" not in reader.bad:
        reader.values.plugins = plugins
    _replace_foreign_folders(reader)
    return _checked(reader, f"in the YAML file and {source}" if "config" in reader.lines else source)


def from_flat(values: Mapping[str, object]) -> Options:
    """Return the Options for a dict from option name to value.

    A run stored the dict, which `Options.flat` made. The values are checked like those of a YAML file. The plug-ins of
    the run must be loaded already. Raises UsageError with one line per problem.
    """
    check_loaded(_plugins_in(values.get("plugins")))
    reader = Reader(FIELDS, DEAD, RENAMED)
    for name, value in values.items():
        reader.take(name, value, "in the stored configuration")
    return _checked(reader, "in the stored configuration")


@dataclass(frozen=True)
class ConfigFile:
    """YAML file of options, with the values and line numbers by option name, or the error of reading it."""

    path: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    error: str = ""


def _config_file(typed: Mapping[str, list[Any]], source: str) -> ConfigFile:
    """Read the YAML file that the command line or a call names. The arguments are those of `_config_path`."""
    try:
        path = _config_path(typed, source)
        return ConfigFile(path, *read(path))
    except UsageError as error:
        return ConfigFile(error=str(error))


def _load_plugins(file: ConfigFile, typed: Mapping[str, list[Any]]) -> tuple[str, ...]:
    """Execute the plug-ins of a YAML file and of the command line, and return their names with digests.

    The plug-ins that the config.yaml of a run to resume names are executed only if the command line names them too.
    Raises UsageError if a plug-in cannot be loaded.
    """
    in_file = _plugins_in(file.values.get("plugins"))
    named = [text for value in typed.get("plugins", []) for text in _plugins_in(value)]
    if "config" in typed:
        named = [*in_file, *named]
    if named:
        process_setup.tune()  # plug-ins import torch
    loaded = load_plugins(named)
    check_loaded(in_file)
    return loaded


def _plugins_in(value: object) -> tuple[str, ...]:
    """Return the plug-ins that a value of the option names. An invalid value names none: a `Reader` reports it."""
    try:
        return tuple(cast(FIELDS["plugins"], value))
    except (ValueError, TypeError):
        return ()


def _config_path(typed: Mapping[str, list[Any]], source: str) -> str:
    """Return the path of the YAML file of options.

    It is the file after --config, else config.yaml of the run to resume. `typed` maps each option on the command line
    to the list of texts given for it. Raises UsageError if the command line names no file.
    """
    if config := typed.get("config", [""])[-1]:
        return _expanded("config", config, source)
    if (resumed := typed.get("resume", ["auto"])[-1] or "auto") == "auto":
        raise UsageError(f"config: no YAML file {TYPED}; pass --config FILE, or --resume with a run's directory")
    try:
        return str(locate_run(Path(_expanded("resume", resumed, source)), "resume: ")[0].config)
    except UsageError as error:
        raise UsageError(f"{error}; --pretrained takes any checkpoint file") from error


def _expanded(name: str, text: str, source: str) -> str:
    try:
        return expanded(text, existing=True)
    except UsageError as error:
        raise UsageError(f"{name}: {shown(text)} {source}{BUT}{error}; pass another path") from error


def _take_file(reader: Reader, file: ConfigFile) -> None:
    """Add the options of a YAML file to `reader`.

    `reader` collects the values and problems. If the file is the config.yaml of the run to resume, `pretrained` is
    skipped: the run's checkpoint replaces it.
    """
    values, lines = dict(file.values), dict(file.lines)
    for alias in ALIASES.keys() & values.keys():
        if ALIASES[alias] in values:
            reader.problems.append(
                f"{alias}: {file.path} has {ALIASES[alias]} too, which is the same option; leave out one of the two"
            )
            reader.bad |= FIELDS.keys() - reader.typed.keys()
            return
        values[ALIASES[alias]], lines[ALIASES[alias]] = values.pop(alias), lines[alias]
    resumed = "config" not in reader.typed
    for name, value in values.items():
        if (name == "config" and value is None) or (name == "pretrained" and resumed):
            continue
        reader.take(name, value, f"in {file.path}", lines.get(name))
    if not resumed:
        reader.chosen |= values.keys()


def _replace_foreign_folders(reader: Reader) -> None:
    """Replace folders of the BIPROP authors' machines by the default folders.

    The YAML files published with BIPROP name such folders. Each replacement adds a warning to `reader`.
    """
    for name in FOLDERS:
        if name not in reader.bad | reader.typed.keys() and is_foreign_folder(name, reader.values):
            default = FIELDS[name].default
            reader.warnings.append(f"{reader.origins[name]} cannot be used here; using {default or RUNS}")
            setattr(reader.values, name, default)


def _checked(reader: Reader, source: str) -> Options:
    """Check the collected option values and return them as Options.

    `reader` has collected the values. They are checked alone and together. `source`, such as "in the
    stored configuration", says in messages where the values come from. Raises UsageError with one line per problem.
    """
    values = reader.values
    for name in FIELDS:
        if getattr(values, name) is MISSING and name not in reader.bad:
            reader.take(name, "", source)
    for name in reader.bad:  # no check reads these, but Options needs values of the right types
        option = FIELDS[name]
        setattr(values, name, next(iter(option.metadata["allowed"])) if option.default is MISSING else option.default)
    options, given = Options.of(values), Given(reader.typed.keys(), reader.chosen)
    for check, right in failures([*row_checks(strict=True), *ERRORS], options, given, reader.bad):
        name = check.options[0]
        reader.problems.append(f"{reader.origins[name]}{reader.lines.get(name, '')}{BUT}{right}")
    if reader.problems:
        raise combined_error(reader.problems)
    without_effect: dict[str, str] = {}  # option -> warning with the first reason
    for check, missing in failures([*row_checks(strict=False), *MISSING_EFFECTS], options, given):
        for name in check.options:
            if given.wants_effect(name, options):
                without_effect.setdefault(name, f"{reader.origins[name]} has no effect without {missing}")
    values.name = values.name or stem(values.config or "") or None
    _reset_without_effect(values, options)
    return Options.of(values, [*reader.warnings, *without_effect.values()])


def _reset_without_effect(values: SimpleNamespace, options: Options) -> None:
    """Set options that have no effect in this run to a fixed value.

    Equivalent runs then store equal options. The attributes of `values` are changed. `options` has the values before
    the change.
    """
    if not options.constraint.is_pruned:
        values.scale_fan = False
    if not options.constraint.is_pruned or values.prune_rate in (-1, 0):
        values.prune_rate = None
    if values.device == "cpu":
        values.multigpu = None
    if "width_mult" not in options.arch_row.options:
        values.width_mult = FIELDS["width_mult"].default


def training_changes(old: Options, new: Options) -> list[str]:
    """Return one line of text per training option that differs between two runs.

    A training option affects training, and a run cannot be resumed with another value of it. `epochs` is left out,
    because a longer run continues a shorter one. `old` and `new` are the options of the runs.
    """
    names = [name for name, option in FIELDS.items() if option.metadata["maths"] and differs(old, new, name)]
    return [f"{name}: {shown(old.value(name))} in the run, {shown(new.value(name))} now" for name in names]


def differs(old: Options, new: Options, name: str) -> bool:
    """Return True if two runs have different values of the option `name`. Of plug-ins only the digests count."""
    before, after = old.value(name), new.value(name)
    return digests_of(before) != digests_of(after) if name == "plugins" else before != after
