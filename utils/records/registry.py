"""Registry of the recorders that --tracker chooses. Importable without torch.

To add a recorder, add a subclass of utils.records.recorder.Recorder, a row in RECORDERS and a test.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from utils.errors import UsageError
from utils.registry import load_object


@dataclass(frozen=True)
class RecorderRow:
    """Registry entry that describes a recorder without importing it.

    recorder: path "package.module:class" of the Recorder, or the class. Its constructor takes no arguments.
    package: name of the package that the recorder imports, as pip spells it, or "".
    """

    recorder: str | Callable[[], Any]
    package: str = ""

    def load(self) -> Any:
        """Import and return the class of the recorder."""
        return load_object(self.recorder)


RECORDERS = {
    "wandb": RecorderRow("utils.records.trackers:Wandb", "wandb"),
    "trackio": RecorderRow("utils.records.trackers:Trackio", "trackio"),
    "mlflow": RecorderRow("utils.records.trackers:MLflow", "mlflow"),
}


def check_installed(names: Iterable[str]) -> None:
    """Raise UsageError if a recorder needs a package that is not installed.

    `names` are keys of RECORDERS.
    """
    for name in names:
        package = RECORDERS[name].package
        try:
            if package:
                metadata.distribution(package)
        except metadata.PackageNotFoundError:
            raise UsageError(f"tracker: {name} needs a package that is not installed: pip install {package}") from None
