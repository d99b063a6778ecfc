"""The YAML file that a command line names."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.config.reader import BUT, TYPED
from utils.errors import UsageError
from utils.paths import expanded
from utils.text import shown


def config_path(typed: Mapping[str, list[Any]]) -> str:
    """The YAML file to read: --config, else the one that the run named by --resume keeps."""
    if named := typed.get("config", [""])[-1]:
        return typed_path("config", named)
    if (resumed := typed.get("resume", ["auto"])[-1] or "auto") == "auto":
        raise UsageError(f"config: no YAML file {TYPED}; give --config FILE, or --resume with a run's directory")
    run = Path(typed_path("resume", resumed))
    within = run.parent.name == "checkpoints" and not os.path.isdir(run)  # noqa: PTH112 as utils.records.run.directory_of
    path = (run.parent.parent if within else run) / "config.yaml"
    if not os.access(path, os.F_OK):
        found = "belongs to no run (--pretrained takes a file)" if os.access(run, os.F_OK) else "does not exist"
        raise UsageError(f"resume: {run} {found}; give a run's directory or one of its checkpoints")
    return str(path)


def typed_path(name: str, text: str) -> str:
    try:
        return expanded(text, existing=True)
    except UsageError as error:
        raise UsageError(f"{name}: {shown(text)} {TYPED}{BUT}{error}; give another") from error
