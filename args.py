"""The command line: options from defaults, a YAML file and flags, in this order. `python main.py --help` lists them."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from types import SimpleNamespace

from utils.config.biprop import ALIASES, DEAD, RENAMED, USABLE, is_foreign_folder
from utils.config.checks import Given, failures
from utils.config.config_file import config_path
from utils.config.contradictions import ERRORS
from utils.config.effects import MISSING_EFFECTS, row_checks
from utils.config.fields import help_lines
from utils.config.options import FIELDS, GROUPS, Options
from utils.config.reader import BUT, TYPED, Reader
from utils.config.yaml_loader import read
from utils.errors import UsageError
from utils.paths import stem
from utils.text import combined_error, shown

__all__ = ["FIELDS", "Options", "changed_mathematics", "from_flat", "help_text", "parse"]


def parse(argv: Sequence[str]) -> Options:
    """Return the options of a command line and of the YAML file that it names.

    Raises UsageError with all problems of both.
    """
    if {"-h", "--help"} & {*argv}:
        with contextlib.suppress(OSError):  # `--help | head`, a full disk
            print(help_text(), flush=True)
            raise SystemExit(0)
        os._exit(0)  # else the interpreter would flush again, and complain
    reader = Reader(FIELDS, DEAD, RENAMED)
    reader.command_line(argv)
    try:
        path = config_path(reader.typed)
        reader.take("config", path, TYPED)  # config.yaml of a run names the file it came from: that name counts then
        _take_file(reader, path)
    except UsageError as error:
        reader.problems.append(str(error))
        reader.bad |= FIELDS.keys() - reader.typed.keys()  # the file may have had them: check only what was typed
    for name, values in reader.typed.items():
        for value in values if name != "config" else []:
            reader.take(name, value, TYPED)
    _leave_foreign_folders(reader)
    return _checked(reader)


def from_flat(values: Mapping[str, object]) -> Options:
    """Return the options of `Options.flat`, checked as a YAML file is. Raises UsageError with all problems."""
    reader = Reader(FIELDS, DEAD, RENAMED)
    for name, value in values.items():
        reader.take(name, value, "in the stored configuration")
    return _checked(reader)


def _take_file(reader: Reader, path: str) -> None:
    """Read the values of a YAML file, except those that only its own past run had."""
    values, lines = read(path)
    for alias in ALIASES.keys() & values.keys():
        if ALIASES[alias] in values:
            raise UsageError(f"{alias}: {path} has {ALIASES[alias]} too, which is the same option; leave out one")
        values[ALIASES[alias]], lines[ALIASES[alias]] = values.pop(alias), lines[alias]
    resumed = "config" not in reader.typed
    for name, value in values.items():
        if (name == "config" and value is None) or (name == "pretrained" and resumed):
            continue
        reader.take(name, value, f"in {path}", lines.get(name))
    if not resumed:
        reader.chosen |= values.keys()


def _leave_foreign_folders(reader: Reader) -> None:
    """Replace folders of BIPROP's authors, which this machine does not have, by the defaults."""
    for name in USABLE:
        if name not in reader.bad | reader.typed.keys() and is_foreign_folder(name, reader.values):
            default = FIELDS[name].default
            reader.warnings.append(f"{reader.origins[name]} cannot be used here; using {default or 'runs'}")
            setattr(reader.values, name, default)


def _checked(reader: Reader) -> Options:
    """Check all that was read. Raises UsageError with every problem."""
    values = reader.values
    for name in FIELDS:
        if getattr(values, name) is MISSING and name not in reader.bad:
            reader.take(name, "", "in the YAML file and on the command line")
    for name in reader.bad:  # no check reads these: any value of the right type stands in
        option = FIELDS[name]
        setattr(values, name, next(iter(option.metadata["allowed"])) if option.default is MISSING else option.default)
    options, given = Options.of(values), Given(reader.typed.keys(), reader.chosen)
    for check, right in failures([*row_checks(strict=True), *ERRORS.checks], options, given, reader.bad):
        name = check.options[0]
        reader.problems.append(f"{reader.origins[name]}{reader.lines.get(name, '')}{BUT}{right}")
    if reader.problems:
        raise combined_error(reader.problems)
    without_effect: dict[str, str] = {}  # the first reason of each option
    for check, missing in failures([*row_checks(strict=False), *MISSING_EFFECTS.checks], options, given):
        for name in check.options:
            if given.wants_effect(name, options):
                without_effect.setdefault(name, f"{reader.origins[name]} has no effect without {missing}")
    _drop_without_effect(values, options)
    return Options.of(values, [*reader.warnings, *without_effect.values()])


def _drop_without_effect(values: SimpleNamespace, options: Options) -> None:
    """Give options without an effect the values that runs without them have."""
    if not options.constraint.is_pruned:
        values.scale_fan = False
    if not options.constraint.is_pruned or values.prune_rate in (-1, 0):
        values.prune_rate = None
    if values.device == "cpu":
        values.multigpu = None
    if "width_mult" not in options.arch_row.options:
        values.width_mult = FIELDS["width_mult"].default
    values.name = values.name or stem(values.config or "") or None


def changed_mathematics(old: Options, new: Options) -> list[str]:
    """Return one line per option whose change makes another run. The option `epochs` is left to the caller."""
    before, after = old.flat(), new.flat()
    names = [name for name, option in FIELDS.items() if option.metadata["maths"] and before[name] != after[name]]
    return [f"{name}: {shown(before[name])} in the run, {shown(after[name])} now" for name in names]


HELP = """usage: python main.py --config FILE [options]

Trains a network with constrained weights. --prune-rate on the command line is prune_rate in the YAML file; the command
line beats the file, the file beats the default. In paths ~, ~user and $NAME are replaced, in the file too.
{}
Exit codes: 0 done; 1 the run failed; 2 bad input; 69 another process is training this run (--resume auto); 75 stopped
by SIGTERM, SIGUSR2, SIGHUP or the first Ctrl-C, saved, can be resumed (--resume); 130 left by Ctrl-C, nothing to save.

Example: python main.py --config configs/quickstart.yml --prune-rate 0.3 --seed 1"""


def help_text() -> str:
    """Return the text of --help."""
    groups = (f"\n{group.capitalize()} options:\n" + "\n".join(help_lines(fields(g))) for group, g in GROUPS.items())
    return HELP.format("\n".join(groups) + "\n")
