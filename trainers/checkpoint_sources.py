"""Read the network in a checkpoint of this program or of BIPROP, or in a bare state dict, whoever wrote it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.biprop_keys import to_biprop
from models.registry import ARCHS
from trainers.resume import check_same_run
from utils.console import warn
from utils.errors import UsageError
from utils.records import checkpoints
from utils.records.run import Run
from utils.run_paths import locate
from utils.text import escaped

WITHOUT_RATE = ("DenseConv", "SampleSubnetConv")  # with these BIPROP stores a default or a measured share as prune_rate
STATE_KEYS = (  # keys of a state dict in the file of another program; if a file has several, the first one counts
    *("model", "state_dict", "model_state_dict", "net", "network", "weights"),
    *("params", "model_state", "network_state_dict", "net_state_dict", "state"),
    *("ema", "model_ema", "state_dict_ema", "ema_state_dict", "params_ema"),
)
MOST_NESTED = 3  # of these keys within each other
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")  # no architecture here has a layer of such a name
LONGEST_KEY = 80  # characters of a key in a message
MOST_KEYS = 4  # keys in a message


@dataclass(frozen=True)
class StoredNetwork:
    """Network in the file `path`.

    content: everything the file holds.
    state: the state dict under BIPROP's keys and shapes, without the prefixes of wrappers such as `module.`.
    declared: arch, conv_type, prune_rate and readout, as far as the file has them.
    is_native: True for this program's layout (`model`, `options`), False for BIPROP's and for a bare state dict.
    """

    path: str
    content: Mapping[str, Any]
    state: dict[str, Tensor]
    declared: dict[str, Any]
    is_native: bool


def read_network(path: str) -> StoredNetwork:
    """Return the network in any file, or in the newest checkpoint of a run directory. No code in it is executed.

    Raises UsageError if there is none, or if the checkpoint is of another run than the config.yaml beside it.
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


def network_in(content: Any, path: str) -> StoredNetwork:
    """Return the network in the content of the file `path`. Raises UsageError if there is none."""
    content = content if isinstance(content, Mapping) else {}
    key, state = _state_dict(content, path)
    is_native = key == "model"
    options = content.get("options") if is_native else content
    options = options if isinstance(options, Mapping) else {}
    declared = {name: options[name] for name in ("arch", "conv_type", "readout") if isinstance(options.get(name), str)}
    arch = ARCHS.get(declared.get("arch", ""))
    if not is_native and arch and "readout" in arch.options:
        declared["readout"] = "original40"  # the only one that BIPROP has
    rate = options.get("prune_rate")
    if isinstance(rate, int | float) and declared.get("conv_type") not in WITHOUT_RATE:
        declared["prune_rate"] = rate
    return StoredNetwork(path, content, to_biprop(_unwrapped(state, path)), declared, is_native)


def _state_dict(content: Mapping[Any, Any], path: str) -> tuple[str, Mapping[str, Tensor]]:
    """Return (key, state dict) for the first of STATE_KEYS that has one. The key of a bare state dict is ""."""
    found = [*_state_dicts(content, MOST_NESTED)]
    if not found:
        keys = ", ".join(escaped(key, LONGEST_KEY) for key in [*content][:MOST_KEYS])
        needed = "tensors by name are needed, bare, in `state_dict` or in `model`"
        raise UsageError(f"{path} holds no network: {needed}" + (f"; it has {keys}" if keys else ""))
    if len(found) > 1:
        names = [key for key, _ in found]
        warn(f"{path} holds {len(found)} networks: {names[0]} is used, not {', '.join(names[1:])}")
    return found[0]


def _state_dicts(content: Mapping[Any, Any], depth: int) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    if content and all(map(_is_entry, content.items())):
        yield "", content
    for key in STATE_KEYS if depth else ():
        if isinstance(inner := content.get(key), Mapping):
            yield from ((f"{key}.{rest}".rstrip("."), state) for rest, state in _state_dicts(inner, depth - 1))


def _is_entry(entry: tuple[Any, Any]) -> bool:
    key, value = entry
    is_tensor = isinstance(value, Tensor) and value.is_cpu and value.layout == torch.strided
    return isinstance(key, str) and is_tensor


def _unwrapped(state: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """Return `state` without the prefixes that torch.compile, DataParallel, Lightning and others give to its keys.

    Raises UsageError if two keys are then equal: the file holds several networks.
    """
    plain: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.replace("._orig_mod.", ".")
        while wrapper := next((w for w in WRAPPERS if name.startswith(w)), None):
            name = name.removeprefix(wrapper)
        if name in plain:
            raise UsageError(f"{path} holds several networks: {escaped(name)} is in it twice, under other wrappers")
        plain[name] = value
    return plain
