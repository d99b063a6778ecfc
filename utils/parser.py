"""The command line of a script."""

import argparse
from typing import Any, NoReturn

from utils.declared import UsageError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that says in one line what is wrong, as a UsageError, and shows its text as it is written."""

    def __init__(self, description: str | None = None, **more: Any) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **more)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; --help says more")
