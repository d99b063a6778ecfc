"""Lines of progress on standard error, because a measurement may take minutes."""

from collections.abc import Callable

from utils import console


def progress(what: str) -> Callable[[str], None]:
    """Return a function that prints how far the measurement of `what` is."""
    return lambda line: console.write("stderr", f"{what}: {line}")
