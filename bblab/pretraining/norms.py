"""Precise norm statistics: what batch norms would have averaged had they had the time, with the weights as they are.

A batch norm normalises with a running average while it is not trained, which forgets its beginning (mean 0, variance 1)
by its momentum a step: after ten times 1/momentum steps 5e-5 of it are left. A run of few steps is scored with its
beginning. Wu & Johnson 2021, "Rethinking Batch in BatchNorm", arXiv:2105.07576, section 3: average the statistics of
batches under fixed weights; 1,000 to 10,000 images are enough.

mmpretrain's PreciseBNHook does that in place: the running averages of the training are lost, so that a run that was
resumed or whose weights are averaged would go on differently; frozen norms and a batch above `num_samples` are its
other traps. Here they are set for the validation and for what is kept, and the training never sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from mmengine.dist import all_reduce, broadcast, get_dist_info
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Statistics = dict[str, Tensor]
"""Running means and variances by their name in a state dict."""


def averaging(net: nn.Module) -> dict[str, _BatchNorm]:
    """The norms that keep running averages and are being trained, by every name; frozen ones are in eval mode."""
    return {
        name: module
        for name, module in net.named_modules(remove_duplicate=False)
        if isinstance(module, _BatchNorm) and module.training and module.running_mean is not None
    }


@torch.no_grad()
def precise(net: nn.Module, batches: Iterable[Any], forward: Callable[[Any], object]) -> Statistics:
    """Means and variances of each norm's input over the batches, each the average of the batches' own, as in training.

    `forward` runs the net on a batch. The net is left as it was: every buffer, mode and momentum. In several processes
    each brings its batches, and all get the average. Empty without norms.
    """
    was_training = net.training
    kept = {name: buffer.clone() for name, buffer in net.named_buffers()}
    net.train()
    norms = averaging(net)
    momenta = {name: norm.momentum for name, norm in norms.items()}
    made: Statistics = {}
    try:
        for norm in norms.values():
            norm.reset_running_stats()
            norm.momentum = None  # torch then averages all batches evenly
        if norms:
            for batch in batches:
                forward(batch)
        made = {name: value.clone() for name, value in _statistics(norms).items()}
    finally:
        for name, norm in norms.items():
            norm.momentum = momenta[name]
        for name, buffer in net.named_buffers():
            buffer.copy_(kept[name])
        net.train(was_training)
    if get_dist_info()[1] > 1:
        for value in made.values():
            all_reduce(value, "mean")
    return made


def _statistics(norms: Mapping[str, _BatchNorm]) -> Statistics:
    made: Statistics = {}
    for name, norm in norms.items():
        assert norm.running_mean is not None and norm.running_var is not None
        made[f"{name}.running_mean"] = norm.running_mean
        made[f"{name}.running_var"] = norm.running_var
    return made


@torch.no_grad()
def exchanged(net: nn.Module, statistics: Mapping[str, Tensor]) -> Statistics:
    """Put statistics into the net; those that were there."""
    buffers = dict(net.named_buffers(remove_duplicate=False))
    before = {name: buffers[name].clone() for name in statistics}
    for name, value in statistics.items():
        buffers[name].copy_(value)
    return before


def share(net: nn.Module) -> None:
    """Give every process the first one's buffers: it is that one's which are saved, and each scores a part."""
    if get_dist_info()[1] > 1:
        for _, buffer in sorted(net.named_buffers()):
            broadcast(buffer, 0)
