"""Find the YAML file that a command line names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.config.reader import BUT, TYPED
from utils.errors import UsageError
from utils.paths import expanded
from utils.run_paths import locate_run
from utils.text import shown


def config_path(typed: Mapping[str, list[Any]]) -> str:
    """Return the path of the YAML file of options.

    It is the file after --config, else config.yaml of the run to resume. `typed` maps each option on the command line
    to the list of texts given for it.

    Raises UsageError if the command line names no file.
    """
    if config := typed.get("config", [""])[-1]:
        return _expanded("config", config)
    if (resumed := typed.get("resume", ["auto"])[-1] or "auto") == "auto":
        raise UsageError(f"config: no YAML file {TYPED}; pass --config FILE, or --resume with a run's directory")
    try:
        return str(locate_run(Path(_expanded("resume", resumed)), "resume: ")[0].config)
    except UsageError as error:
        raise UsageError(f"{error}; --pretrained takes any checkpoint file") from error


def _expanded(name: str, text: str) -> str:
    try:
        return expanded(text, existing=True)
    except UsageError as error:
        raise UsageError(f"{name}: {shown(text)} {TYPED}{BUT}{error}; pass another path") from error
