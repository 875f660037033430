"""bblab's nets and machinery under names that mmpretrain's Config can say: import this module, and they are registered.

Everything goes through mmengine's registries: a backbone built from a spec that is plain data, a sampler that begins
in mid-epoch, an optimizer with two parameter groups, an optimizer wrapper that autocasts on any device.
"""

from __future__ import annotations

import pprint
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.model import BaseModule
from mmengine.optim import OptimWrapper
from mmengine.registry import DATA_SAMPLERS, FUNCTIONS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, TRANSFORMS
from mmengine.registry import OPTIMIZERS as OPTIMIZERS
from torch import Tensor, nn

from bblab.pretraining import hooks as _hooks  # noqa: F401  registers the hook of a run
from bblab.pretraining import hooks_0_1 as _hooks_0_1  # noqa: F401  registers those of version 0.1
from bblab.pretraining import nets
from bblab.pretraining import unreadable as _unreadable  # noqa: F401  registers the data set and the metric
from bblab.pretraining.data import transforms as _transforms  # noqa: F401  registers the fast loaders


class PlainConfig(Config):
    """mmengine's Config, written without yapf, which takes 0.6 s at every checkpoint and more with more to say."""

    @property
    def pretty_text(self) -> str:
        plain = self._cfg_dict.to_dict()
        return "".join(
            f"{key} = {pprint.pformat(value, width=110, sort_dicts=False)}\n" for key, value in plain.items()
        )


@MODELS.register_module()
class BblabNet(BaseModule):
    """The net of a spec in train form, with its head: B, C, H, W -> (scores,), scores B, classes.

    spec: the canonical form as plain data. freeze: a stage; it and all before it keep weights and norm statistics.
    weights: a file written for this spec. compiled: torch.compile the net. channels_last: on CUDA only (on the CPU
    torch 2.13 crashes in MobileOne's backward pass).
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        num_classes: int,
        name: str = "net",
        lab: str | None = None,
        freeze: str | None = None,
        weights: str | None = None,
        compiled: bool = False,
        channels_last: bool = False,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        found, kinds = nets.spec_of(spec, name, lab)
        self.net, self.frozen = nets.make(found, kinds, num_classes, weights=weights, freeze=freeze)
        self.channels_last = channels_last and torch.cuda.is_available()
        if self.channels_last:
            self.to(memory_format=torch.channels_last)
        if compiled:
            self.compile()
        self.train()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return (nets.scores(self.net, x),)

    def train(self, mode: bool = True) -> BblabNet:
        """Frozen stages stay in eval mode: else their norms' statistics would move under fixed weights."""
        super().train(mode)
        for module in getattr(self, "frozen", ()):
            module.eval()
        return self

    def init_weights(self) -> None:
        """Done when built: mmengine's EMA copies the net before it would call this."""


# ---------------------------------------------------------------------------------------------- optimizing


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TwoGroups:
    """Parameters that decay, and norms and biases that do not: two groups.

    mmengine's own constructor makes a group of every parameter, which every scheduler then walks every iteration.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        self.wrapper = dict(optim_wrapper_cfg)
        self.optimizer = dict(self.wrapper.pop("optimizer"))
        self.decays = {"norms": True, "biases": True}
        for key in self.decays:
            self.decays[key] = bool((paramwise_cfg or {}).get(f"decays_{key}", True))

    def __call__(self, model: nn.Module) -> OptimWrapper:
        model = getattr(model, "module", model)
        decaying: list[nn.Parameter] = []
        sparing: list[nn.Parameter] = []
        for module in model.modules():
            for name, p in module.named_parameters(recurse=False):
                if p.requires_grad:
                    kind = "norms" if nets.is_norm(module) else "biases" if name == "bias" else ""
                    (sparing if kind and not self.decays[kind] else decaying).append(p)
        groups: list[dict[str, Any]] = [{"params": decaying}] if decaying else []
        if sparing:
            groups.append({"params": sparing, "weight_decay": 0.0})
        optimizer = OPTIMIZERS.build({**self.optimizer, "params": groups})
        wrapper: OptimWrapper = OPTIM_WRAPPERS.build(
            {"type": "OptimWrapper", **self.wrapper}, default_args={"optimizer": optimizer}
        )
        return wrapper


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Forward pass in a lower precision, on any device. bfloat16 has float32's range: no loss scaling is needed.

    mmengine's AmpOptimWrapper refuses the CPU, and scales the loss always.
    """

    def __init__(self, dtype: str = "bfloat16", **more: Any) -> None:
        super().__init__(**more)
        self.dtype = getattr(torch, dtype)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=self.dtype):
            yield


# ---------------------------------------------------------------------------------------------- data


class Draw(int):
    """The index of an image that says which of its repeats in an epoch this is; mmengine hands it on as it is."""

    repeat: int

    def __new__(cls, index: int, repeat: int = 0) -> Draw:
        made = super().__new__(cls, index)
        made.repeat = repeat
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Draw, (int(self), self.repeat)


@DATA_SAMPLERS.register_module()
class ResumableSampler(DefaultSampler):
    """mmengine's sampler; `skip` images of the next epoch were seen before the run was stopped in its middle.

    repeats: how often an image of an epoch stands in it, each time augmented anew; the epoch keeps its length, so it
    sees a part of the images (Hoffer et al. 2020, arXiv:1901.09335).
    """

    skip = 0

    def __init__(self, dataset: Any, shuffle: bool = True, seed: int | None = None, repeats: int = 1) -> None:
        super().__init__(dataset, shuffle=shuffle, seed=seed)
        self.repeats = repeats

    def __iter__(self) -> Iterator[int]:
        indices = list(super().__iter__())
        if self.repeats > 1:
            part = indices[: -(-len(indices) // self.repeats)]
            indices = [Draw(i, n) for i in part for n in range(self.repeats)][: len(indices)]
        indices = indices[self.skip :]
        self.skip = 0
        return iter(indices)


@TRANSFORMS.register_module()
class SeededSample(BaseTransform):
    """Begin each image's random numbers from (seed, epoch, image).

    So the augmentation does not depend on the number of workers, and a resumed run sees what the uninterrupted one
    would have seen. (mmengine seeds its workers alike in every epoch.) `hooks.Seeds` sets both before each epoch.
    """

    seed = 0
    epoch = 0

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        index = results.get("sample_idx", 0)
        mixed = hash((self.seed, self.epoch, int(index), getattr(index, "repeat", 0))) & 0xFFFFFFFF
        random.seed(mixed)
        np.random.seed(mixed)
        if torch.utils.data.get_worker_info() is not None:  # torch's own numbers in this process are the net's
            torch.manual_seed(mixed)
        return results


@FUNCTIONS.register_module(name="bblab_worker")
def start_worker(worker_id: int) -> None:
    """One thread a worker: they share the cores with each other and with the training."""
    torch.set_num_threads(1)
    try:
        import cv2

        cv2.setNumThreads(0)
    except ImportError:
        pass
