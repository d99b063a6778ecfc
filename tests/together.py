"""Outcomes of a few steps of training, to compare several processes with one.

Run under torchrun, every rank writes its outcomes of all cases to the file that the argument names.
"""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

if __name__ == "__main__":  # The project is one level up if this file runs as a script.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from args import from_flat
from models.constraints import constrained_layers
from trainers.build import assemble, build, load_set
from trainers.loop import fit
from trainers.training_state import TrainingState
from utils.distributed import launcher_env, rendezvous, runtime

# digits: 1437 training images make 12 steps per epoch; the 117 images of the last do not divide by 2
COMMON = {"set": "digits", "batch_size": 120, "epochs": 2, "seed": 3, "optimizer": "sgd", "lr": 0.05, "momentum": 0.9}
COMMON |= {"precision": "fp32", "device": "cpu"}
TICKET = {
    "arch": "Conv2",
    "conv_type": "SubnetConv",
    "prune_rate": 0.5,
    "freeze_weights": True,
    "init": "kaiming_normal",
}
LENET = {"arch": "MNISTNet", "init": "standard"}  # with dropout of both kinds
PERCEPTRON = {"arch": "MLP", "hidden": [40, 30], "init": "standard", "norm": "batch_norm"}
MOVING = {"arch": "MLP", "hidden": [40, 30], "conv_type": "SparseConv", "prune_rate": 0.3, "update_interval": 2}
MOVING |= {"progress_interval": 5, "init": "standard"}
CIRCUIT = {"arch": "CircuitMLP", "hidden": [40, 30], "conv_type": "BinaryConv", "init": "binary", "pixels": "binary"}
CIRCUIT |= {"initial_ones": 0.1, "lr": 0.01}
CASES = {
    "ticket": TICKET,
    "ticket of signs": TICKET | {"arch": "MLP", "hidden": [60, 50, 40], "activation": "sign"},
    "global ticket": TICKET | {"conv_type": "GlobalSubnetConv", "prune_rate": 0.3, "prune_rate_epoch": 1},
    "sampled ticket": TICKET | {"conv_type": "SampleSubnetConv", "prune_rate": None, "score_init_constant": 0.5},
    "binary activations": {"arch": "Conv2_BinAct", "sync_bn": True, "lr": 0.01},
    "lottery": TICKET | {"trainer": "lottery", "dense_epochs": 1, "first_layer_dense": True, "lr": 0.01},
    "sparse scores": TICKET | {"trainer": "ss", "score_l1": 1e-4},
    "noise": TICKET | {"gaussian_aug": True, "p_clean": 0.5, "jsd": True},
    "dense": {"arch": "Conv2", "weight_decay": 5e-4, "grad_clip": True, "label_smoothing": 0.1, "lr": 0.005},
    "residual": {"arch": "cResNet20", "sync_bn": True, "lr": 0.002, "low_data": 0.3, "epochs": 4},
    "batch norm": PERCEPTRON | {"sync_bn": True},
    "batch norm of each": PERCEPTRON,
    "dropout of three views": LENET | {"gaussian_aug": True, "p_clean": 0.5, "jsd": True, "lr": 0.01},
    "shifts": LENET | {"conv_type": "ShiftQ", "lr": 0.01},
    "shifts and signs": LENET | {"conv_type": "ShiftPS", "rounding": "stochastic", "lr": 0.01},
    "hebbian": MOVING,
    "correlation": MOVING | {"drop": "correlation", "grow": "hebbian"},
    "SET": MOVING | {"drop": "magnitude", "grow": "random"},
    "RigL": MOVING | {"drop": "magnitude", "grow": "gradient"},
    "SET per sign": MOVING | {"drop": "magnitude_per_sign", "grow": "random"},
    "control": MOVING | {"prune_rate": None, "drop": "random", "grow": "random"},
    "filters": MOVING | {"prune_rate": None, "keep_share": 0.3, "live_share": 0.5},
    "circuit": CIRCUIT | {"norm": "batch_norm", "sync_bn": True, "random_mag": 0.5, "test_batch_size": 100},
    "circuit of inverters": CIRCUIT | {"norm": "soft_invert"},
}


class LastEpoch:
    """Callbacks that keep the scores and tables of the last epoch, and never ask to stop or save."""

    def stop_asked(self):
        return False

    save_due = stop_asked

    def tables(self, epoch, tables):
        self.last_tables = tables

    def epoch_done(self, state, train, held_out, rate, *, is_best):
        self.train, self.held_out = train, held_out


@contextmanager
def in_float64():
    """Replace float32 by float64, so that rounding flips no sign and swaps no two scores."""
    single = torch.Tensor.float
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.Tensor.float = single
        torch.set_default_dtype(torch.float32)


def outcome(name, here):
    """Train one case; return the loss of every step, the final state, masks, scores and names of the tables."""
    options = from_flat(COMMON | CASES[name])
    model, method = build(options)
    parts = assemble(options, here, model, method, load_set(options))
    losses, true_loss, events = [], method.loss, LastEpoch()

    def recorded(logits, labels):
        loss = true_loss(logits, labels)
        if torch.is_grad_enabled():
            mine = parts.train.share(len(losses) % len(parts.train))
            losses.append(here.total(loss.detach() * mine.weight / mine.world).item())
        return loss

    method.loss = recorded
    fit(parts, TrainingState(), options.optim.epochs, events)
    kept = {at: layer.constraint(layer.weight) != 0 for at, layer in constrained_layers(model.eval()).items()}
    scores = {"train": events.train.as_dict(), "held out": events.held_out.as_dict()}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    return {"losses": losses, "state": state, "kept": kept, "scores": scores, "tables": sorted(events.last_tables)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    process = launcher_env.detect_process(os.environ)
    here = runtime.choose("cpu", "fp32", None, deterministic=False, process=process)
    with rendezvous.process_group(here, 60):
        found = {name: outcome(name, here) for name in CASES}
        with in_float64():
            exact = {name: outcome(name, here) for name in CASES}
        torch.save([found, exact], f"{sys.argv[1]}.{process.rank}")
