"""Comparison of a run that is trained for more epochs with a run that was started with that number of epochs."""

from args import Options
from models.constraints.registry import REWIRE_UNTIL
from trainers.schedules import schedule
from utils.console import warn


def warn_if_extended(options: Options, epochs: int, trained: int) -> None:
    """Warn if the trained epochs would have differed in a run that was started with `options`.

    The run was started with `epochs` epochs. `trained` is the number of epochs that it has begun.
    """
    o, c = options.optim, options.constraint
    before, now = (
        schedule(o.lr_policy, epochs=number, warmup=o.warmup_length, step=o.lr_adjust, gamma=o.lr_gamma)
        for number in (epochs, o.epochs)
    )
    until = c.progress_until or (1.0 if c.rewires_filters else REWIRE_UNTIL)
    has_stopped_rewiring = c.density_schedule == "cubic" or trained > until * epochs
    differ = {
        "learning rates": any(before(epoch) != now(epoch) for epoch in range(trained)),
        "rewirings": epochs != o.epochs and c.is_rewired and has_stopped_rewiring,
    }
    if names := [name for name, differs in differ.items() if differs]:
        longer = f"a run that was started with {o.epochs} epochs has other {' and '.join(names)}"
        warn(f"epochs: {epochs} in the run, {o.epochs} now: {longer} in the epochs trained so far")
