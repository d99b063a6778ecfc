"""Modules that are replaced for several ranks: synchronised batch norm, and dropout of the global batch."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import models
from trainers.ddp import GlobalDropout, Replicas
from trainers.sync_batch_norm import FusedSyncBatchNorm, SyncBatchNorm, synchronise
from utils.distributed.batch_slice import BatchSlice
from utils.distributed.launcher_env import ProcessInfo
from utils.distributed.runtime import ALONE

FIRST_OF_TWO = replace(ALONE, process=ProcessInfo(0, 2))


def network(arch, **options):
    return models.build(arch, num_classes=3, in_shape=(1, 28, 28), **options)


@pytest.mark.parametrize(("fused", "kind"), [(False, SyncBatchNorm), (True, FusedSyncBatchNorm)])
def test_synchronised_batch_norms_share_parameters_and_keep_keys_and_mode(fused, kind):
    model = network("cResNet20").eval()
    before = model.state_dict(keep_vars=True)
    synchronise(model, fused=fused)
    after = model.state_dict(keep_vars=True)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms and {type(norm) for norm in norms} == {kind} and not any(norm.training for norm in norms)
    assert list(before) == list(after) and all(before[key] is after[key] for key in before)


def test_replicas_replace_dropout_layers_and_keep_the_state_dict_keys():
    model = network("MNISTNet")
    kinds = [type(m) for m in model.modules() if isinstance(m, nn.Dropout | nn.Dropout2d)]
    keys, order = list(model.state_dict()), [name for name, _ in model.named_modules()]
    Replicas(FIRST_OF_TWO).prepare(model)
    exchanged = [m for m in model.modules() if isinstance(m, GlobalDropout)]
    assert [m.spatial for m in exchanged] == [kind is nn.Dropout2d for kind in kinds] and len(kinds) > 1
    assert list(model.state_dict()) == keys and [name for name, _ in model.named_modules()] == order


@pytest.mark.parametrize(("spatial", "shape"), [(False, (5,)), (False, (2, 3, 3)), (True, (4, 2, 2))])
@pytest.mark.parametrize("views", [1, 3])
def test_the_dropout_masks_of_all_ranks_join_to_that_of_the_global_batch(spatial, shape, views):
    dropout, images = GlobalDropout(0.5, spatial=spatial), torch.randn(views, 7, *shape)

    def of_rank(rank, world):
        torch.manual_seed(0)
        dropout.batch_slice = BatchSlice.of(7, rank, world)
        rows = images[:, dropout.batch_slice.rows].flatten(0, 1)
        return dropout(rows).view(views, -1, *shape), torch.rand(1)

    whole, draw = of_rank(0, 1)
    parts, draws = zip(*(of_rank(rank, 2) for rank in range(2)), strict=True)
    assert torch.equal(torch.cat(parts, 1), whole) and 0 < (whole == 0).float().mean() < 1
    assert draws == (draw, draw), "the generators of the ranks stay equal"
    assert torch.equal(dropout.eval()(images[0]), images[0])


def test_next_slice_sets_the_batch_slice_of_every_dropout_layer():
    class Batches:
        def share(self, step):
            return BatchSlice.of(10 + step, 0, 2)

    model = network("MNISTNet")
    replicas = Replicas(FIRST_OF_TWO)
    replicas.prepare(model)
    assert replicas.next_slice(Batches(), 4, 7) == BatchSlice(0, 7, 14, 2)
    assert {m.batch_slice for m in model.modules() if isinstance(m, GlobalDropout)} == {BatchSlice(0, 7, 14, 2)}
    assert Replicas().next_slice(Batches(), 4, 7) == BatchSlice(0, 7, 7)
