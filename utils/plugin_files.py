"""The plug-in files that this process has loaded: their code, their digests, and errors that come from them."""

import hashlib
import importlib
import importlib.util
import os
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UsageError
from utils.files import irregular
from utils.paths import expanded

MARK = "#sha256:"  # between the file and its digest, in the stored value of the option plugins
DIGITS = 16  # hexadecimal digits of the digest
LARGEST = 10_000_000  # bytes
DEBUG = "--debug"  # flag that prints the traceback of an error
DEBUG_ADVICE = f"{DEBUG} prints the traceback"
_loaded: dict[str, "PluginFile"] = {}  # path of each plug-in -> the version that was loaded last
_names: dict[str, str] = {}  # path of each plug-in whose code was executed, perhaps with an error -> its name


@dataclass(frozen=True)
class PluginFile:
    """File of Python code that registers parts of runs, such as constraints.

    name: what the user gave, without a digest: a path that ends with .py, or the name of a module.
    path: the absolute path of the file.
    source: the content of the file.
    """

    name: str
    path: str
    source: bytes

    @property
    def digest(self) -> str:
        """The first hexadecimal digits of the SHA-256 of the file."""
        return hashlib.sha256(self.source).hexdigest()[:DIGITS]

    @property
    def stored(self) -> str:
        """The value of the option `plugins` that a run stores. It names this version of the file."""
        return f"{self.path if self.name.endswith('.py') else self.name}{MARK}{self.digest}"

    def execute(self) -> None:
        """Execute the code of the file, as a module of its own.

        A module that is imported already is not executed again. Raises the error of the code.
        """
        _names[self.path] = self.name
        if self.name.endswith(".py"):
            name = f"plugin_{self.digest}_{Path(self.path).stem}"
            spec = importlib.util.spec_from_file_location(name, self.path)
            assert spec is not None
            sys.modules[name] = module = importlib.util.module_from_spec(spec)
            exec(compile(self.source, self.path, "exec"), module.__dict__)
        else:
            importlib.import_module(self.name)
        _loaded[self.path] = self


def find(text: str) -> PluginFile:
    """Read the plug-in that a value of the option `plugins` names, without executing it.

    `text` is a path that ends with .py, or the name of an installed module. The digest of the required version may
    follow, after "#sha256:". Raises UsageError if there is no such plug-in, or if the file has another digest.
    """
    given, _, digest = text.partition(MARK)
    try:
        path = expanded(given, existing=True) if given.endswith(".py") else _module_path(given)
        if fault := irregular(Path(path)):
            raise UsageError(f"plugins: {given} {fault}; pass a file of Python code")
        with Path(path).open("rb") as file:
            source = file.read(LARGEST + 1)
    except OSError as error:
        raise UsageError(f"plugins: {given} cannot be read: {error.strerror}; pass the path of a .py file") from error
    if len(source) > LARGEST:
        raise UsageError(f"plugins: {given} has more than {LARGEST:,} bytes; pass a file of Python code")
    found = PluginFile(given, os.path.abspath(path), source)  # noqa: PTH100 resolve() would follow links
    if digest and digest != found.digest:
        raise UsageError(
            f"plugins: {given} has changed: the SHA-256 of the file begins with {found.digest}, but {digest} is "
            f"required; restore the file, or start a new run without {MARK}{digest}"
        )
    return found


def load(texts: Iterable[str]) -> tuple[str, ...]:
    """Execute the plug-ins that the option `plugins` names, and return their names with digests.

    The returned values are those that a run stores. A version that this process has loaded is not executed again. If a
    value has a digest and another value names a file with that digest, this file is used, wherever it is.

    Raises UsageError if a plug-in does not exist, has another digest than required, or raises an error.
    """
    values = list(dict.fromkeys(texts))
    files = {file.digest: file for file in map(find, [text for text in values if MARK not in text])}
    stored = {text.partition(MARK)[2]: text for text in values if MARK in text}
    files |= {digest: find(text) for digest, text in stored.items() if digest not in files}
    for file in files.values():
        if file.digest not in {loaded.digest for loaded in _loaded.values()}:
            try:
                file.execute()
            except UsageError as error:
                raise UsageError(f"plugins: {place(error)}: {error}; {DEBUG_ADVICE}") from error
            except Exception as error:  # the code is the user's: it can raise any type
                raise UsageError(f"plugins: {one_line(error)}") from error
    return tuple(stored.get(digest, file.stored) for digest, file in files.items())


def check_loaded(texts: Iterable[str]) -> None:
    """Raise UsageError if a plug-in that a run used is not loaded, in whatever version.

    `texts` are the values of the option `plugins` that the run stored. Files that another person wrote must not be
    executed just because a run names them.
    """
    digests = {file.digest for file in _loaded.values()}
    for text in texts:
        given, _, digest = text.partition(MARK)
        if digest not in digests and _loaded_as(given) is None:
            raise UsageError(
                f"plugins: the run needs {given}, which is not executed unless you name it: --plugin {given}"
            )


def other_versions(texts: Iterable[str]) -> list[str]:
    """Return the names of the plug-ins that a run used in another version than the one that is loaded.

    `texts` are the values of the option `plugins` that the run stored.
    """
    digests = {file.digest for file in _loaded.values()}
    return [given for given, _, digest in (text.partition(MARK) for text in texts) if digest not in digests]


def _loaded_as(given: str) -> PluginFile | None:
    """Return the loaded plug-in that is called like another one: the file name counts, or the name of the module."""
    return next((file for file in _loaded.values() if Path(file.name).name == Path(given).name), None)


def digests_of(texts: Iterable[str]) -> list[str]:
    """Return the digests in stored values of the option `plugins`."""
    return sorted(text.partition(MARK)[2] for text in texts)


def flags_of(texts: Iterable[str]) -> str:
    """Return the flags that name plug-ins on a command line, such as " --plugin my_ideas.py"."""
    return "".join(f" --plugin {shlex.quote(text.partition(MARK)[0])}" for text in texts)


def _module_path(name: str) -> str:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise UsageError(f"plugins: there is no module {name!r}; pass the path of a .py file, or the name of a module")
    return spec.origin


def place(error: BaseException) -> str:
    """Return the line of a plug-in that raised an error, such as "my_ideas.py, line 12", or "".

    If several lines of plug-ins were active, the innermost one counts. The cause of an error counts too.
    """
    if isinstance(error, SyntaxError) and error.filename in _names:
        return f"{_names[error.filename]}, line {error.lineno}"
    found, trace = "", error.__traceback__
    while trace is not None:
        if (path := trace.tb_frame.f_code.co_filename) in _names:
            found = f"{_names[path]}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return found or (place(error.__cause__) if error.__cause__ else "")


def one_line(error: BaseException) -> str:
    """Return one line of text that explains an error of a plug-in: its place, type and message."""
    reason = (error.msg if isinstance(error, SyntaxError) else str(error)).strip().partition("\n")[0]
    return f"{place(error)}: {type(error).__name__}{f': {reason}' if reason else ''}; {DEBUG_ADVICE}"
