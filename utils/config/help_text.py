"""The text that --help prints."""

from dataclasses import fields

from utils.config.effects import needs
from utils.config.fields import help_lines
from utils.config.options import ADDED, GROUPS
from utils.errors import RunFailed, RunInUse, Stopped, UsageError
from utils.plugin_files import DEBUG
from utils.stop_signal import INTERRUPT_EXIT_CODE

HELP = f"""usage: python main.py --config FILE [options]

Train a network with constrained weights. Each option is also a key of the YAML file: --prune-rate is prune_rate there.
The command line overrides the file, and the file overrides the default. ~, ~user and $NAME in paths are expanded.
With {DEBUG}, an error prints its traceback too.
{{}}
Exit codes:
  0    success
  {RunFailed.exit_code:<3}  the run failed
  {UsageError.exit_code:<3}  bad input
  {RunInUse.exit_code:<3}  another process is training this run (only with --resume auto)
  {Stopped.exit_code:<3}  stopped by SIGTERM, SIGUSR2, SIGHUP or Ctrl-C after saving a checkpoint; \
--resume continues the run
  {INTERRUPT_EXIT_CODE:<3}  ended by Ctrl-C before there was anything to save, or by a second Ctrl-C

Example: python main.py --config configs/quickstart.yml --prune-rate 0.3 --seed 1"""


def help_text() -> str:
    """Return the text that --help prints."""
    needed = needs()
    declared = {group: fields(kind) for group, kind in GROUPS.items()} | ({"plug-in": ADDED.values()} if ADDED else {})
    groups = (
        f"\n{group.capitalize()} options:\n" + "\n".join(help_lines(options, needed))
        for group, options in declared.items()
    )
    return HELP.format("\n".join(groups) + "\n")
