"""Read a network from a checkpoint of this program, a checkpoint of BIPROP, or the state dict of any program."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from args import Options, from_flat
from models.biprop_keys import to_biprop
from models.constraints.registry import CONV_TYPES
from models.registry import ARCHS
from trainers.resume import check_same_run
from utils.console import warn
from utils.errors import UsageError
from utils.records import checkpoints
from utils.records.run import Run
from utils.run_paths import locate
from utils.text import combined_error, escaped, split_problems

STATE_KEYS = (  # keys of a state dict in the file of another program; if a file has several, the first one counts
    *("model", "state_dict", "model_state_dict", "net", "network", "weights"),
    *("params", "model_state", "network_state_dict", "net_state_dict", "state"),
    *("ema", "model_ema", "state_dict_ema", "ema_state_dict", "params_ema"),
)
MOST_NESTED = 3  # depth to which these keys may be nested
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")  # key prefixes; no architecture here has a layer of such a name
LONGEST_KEY = 80  # characters of a key in a message
MOST_KEYS = 4  # keys in a message


@dataclass(frozen=True)
class StoredNetwork:
    """State dict of a network, read from a file, with the options that the file records.

    path: the file.
    content: everything that the file holds.
    state: the state dict with BIPROP's keys and shapes, without key prefixes such as `module.`.
    declared: the options arch, conv_type, prune_rate and readout, as far as the file has them.
    is_native: True if this program wrote the file (entries `model` and `options`).
    """

    path: str
    content: Mapping[str, Any]
    state: dict[str, Tensor]
    declared: dict[str, Any]
    is_native: bool


def read_network(path: str) -> StoredNetwork:
    """Read a network from a file, or from the newest checkpoint of a run directory.

    No code in a file is executed. Raises UsageError if there is no network, or if the checkpoint is of another run than
    the config.yaml beside it.
    """
    paths, file = locate(Path(path))
    if paths is None or file is not None:
        return network_in(checkpoints.read(Path(path)), path)
    run = Run(paths.path)
    found = checkpoints.newest(run)
    if found is None:
        raise UsageError(f"{path} is not a run: it has no readable checkpoint")
    content, file = found
    if run.exists:
        check_same_run(content, file, run.options())
    return network_in(content, str(file))


def options_in(stored: StoredNetwork, changes: Mapping[str, object]) -> Options:
    """Return the options that a network file declares, with `changes`. Raises UsageError, which names the file."""
    declared = stored.content.get("options") if stored.is_native else stored.declared
    try:
        return from_flat({**(declared if isinstance(declared, Mapping) else {}), **changes})
    except UsageError as error:
        raise combined_error(f"{stored.path}: {line}" for line in split_problems(error)) from error


def network_in(content: Any, path: str) -> StoredNetwork:
    """Extract the network from the content of a file.

    `content` is the loaded file `path`. Raises UsageError if there is no network.
    """
    content = content if isinstance(content, Mapping) else {}
    key, state = _state_dict(content, path)
    is_native = key == "model"
    options = content.get("options") if is_native else content
    options = options if isinstance(options, Mapping) else {}
    declared = {name: options[name] for name in ("arch", "conv_type", "readout") if isinstance(options.get(name), str)}
    arch = ARCHS.get(declared.get("arch", ""))
    if not is_native and arch and "readout" in arch.options:
        declared["readout"] = "original40"  # the only readout of BIPROP
    row, density = CONV_TYPES.get(declared.get("conv_type", "")), options.get("prune_rate")
    # A conv_type without a density also has a prune_rate in a file of BIPROP.
    if isinstance(density, int | float) and not (row and row.density == "unused"):
        declared["prune_rate"] = density
    return StoredNetwork(path, content, to_biprop(_unwrapped(state, path)), declared, is_native)


def _state_dict(content: Mapping[Any, Any], path: str) -> tuple[str, Mapping[str, Tensor]]:
    """Find the state dict in the content of a file, and return its key and the state dict.

    Warn if there are several, and return the first. The key is "" if `content` itself is the state dict. Raises
    UsageError if there is no state dict.
    """
    found = [*_state_dicts(content, MOST_NESTED)]
    if not found:
        keys = ", ".join(escaped(key, LONGEST_KEY) for key in [*content][:MOST_KEYS])
        needed = "it must be a state dict, or have one as its entry `state_dict` or `model`"
        raise UsageError(f"{path} holds no network: {needed}" + (f"; its entries are {keys}" if keys else ""))
    if len(found) > 1:
        names = [key for key, _ in found]
        warn(f"{path} holds {len(found)} networks: {names[0]} is used, not {', '.join(names[1:])}")
    return found[0]


def _state_dicts(content: Mapping[Any, Any], depth: int) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield every state dict in `content`, with its key.

    The key of a nested state dict, such as "state_dict.model", joins at most `depth` of the STATE_KEYS.
    """
    if content and all(_is_tensor_entry(key, value) for key, value in content.items()):
        yield "", content
    for key in STATE_KEYS if depth else ():
        if isinstance(inner := content.get(key), Mapping):
            yield from ((f"{key}.{rest}".rstrip("."), state) for rest, state in _state_dicts(inner, depth - 1))


def _is_tensor_entry(key: Any, value: Any) -> bool:
    """Return True if a dict entry can belong to a state dict.

    The key must be a str, and the value a dense tensor on the CPU.
    """
    return isinstance(key, str) and isinstance(value, Tensor) and value.is_cpu and value.layout == torch.strided


def _unwrapped(state: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """Return a state dict without the key prefixes that wrappers add.

    Examples of wrappers are torch.compile, DataParallel and Lightning. `state` stays unchanged. Raises UsageError if
    two keys become equal, because the file then holds several networks.
    """
    plain: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.replace("._orig_mod.", ".")
        while wrapper := next((w for w in WRAPPERS if name.startswith(w)), None):
            name = name.removeprefix(wrapper)
        if name in plain:
            raise UsageError(f"{path} holds several networks: it has {escaped(name)} twice, with different prefixes")
        plain[name] = value
    return plain
