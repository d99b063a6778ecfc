"""Parse ranges of numbers of the form start:stop:step."""

import math

STEPS = "start:stop:step or none"
LARGEST_STEP = 1_000_000
MOST_STEPS = 1000


def stepped(text: str) -> list[float]:
    """Return the numbers of a range such as "0:4:0.1".

    The range is start:stop:step, both ends included. "none" is an empty range. Raises ValueError if `text` has another
    form, more than MOST_STEPS numbers, or a number outside 0 to LARGEST_STEP.
    """
    if text == "none":
        return []
    start, stop, step = map(float, text.split(":"))
    count = math.floor((stop - start) / step + 1e-9) + 1 if 0 <= start <= stop <= LARGEST_STEP >= step > 0 else 0
    if not 0 < count <= MOST_STEPS:
        raise ValueError
    return [round(start + i * step, 9) for i in range(count)]
