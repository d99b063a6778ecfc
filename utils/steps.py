"""Ranges of numbers as users type them: start:stop:step."""

import math

STEPS = "start:stop:step or none"
LARGEST_STEP = 1_000_000


def stepped(text: str, most: int = 1000) -> list[float]:
    """Return the numbers of "start:stop:step", both ends included, or none of "none".

    Raises ValueError if `text` is neither, has more than `most` numbers, or one outside 0 to LARGEST_STEP.
    """
    if text == "none":
        return []
    start, stop, step = map(float, text.split(":"))
    count = math.floor((stop - start) / step + 1e-9) + 1 if 0 <= start <= stop <= LARGEST_STEP >= step > 0 else 0
    if not 0 < count <= most:
        raise ValueError
    return [round(start + i * step, 9) for i in range(count)]
