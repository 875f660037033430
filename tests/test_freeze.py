"""Freezing: with real optimiser steps, nothing of a frozen backbone moves, whoever calls train()."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bblab import blocks, build
from bblab import spec as language
from bblab.errors import BblabError
from bblab.rooms import Rooms
from bblab.tracking import freeze, unfreeze

KINDS = blocks.infos(Rooms(Path("/nonexistent")))
NET = """
name: small
input: [3, 32, 32]
stages:
  stem: {block: conv, out: 8, stride: 2}
  s4: {block: mobileone, out: 8, stride: 2, branches: 2}
  s8: {block: repvgg, out: 16, stride: 2}
"""
Optimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


class Tracker(nn.Module):
    """A backbone and a head, as a trainer holds them."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Sequential(nn.Conv2d(16, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)[-1])


def tracker() -> Tracker:
    torch.manual_seed(0)
    return Tracker(build.Backbone(language.parse(NET, KINDS, name="small"), KINDS))


def sgd(params: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1)


def adamw(params: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=0.1, weight_decay=0.1)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, *, set_to_none: bool = True) -> None:
    optimizer.zero_grad(set_to_none=set_to_none)
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("make", [sgd, adamw])
@pytest.mark.parametrize("first", ["freeze", "train"])
def test_nothing_of_a_frozen_backbone_moves_in_whole_epochs(make: Optimizer, first: str) -> None:
    model = tracker()
    optimizer = make(list(model.parameters()))
    before, head = state(model.backbone), state(model.head)
    for epoch in range(3):
        for call in (first, "train" if first == "freeze" else "freeze"):
            if call == "train":
                model.train()  # the trap: TracKit does this at each epoch's start
            else:
                freeze(model.backbone, epoch, unfreeze_at=3)
        for _ in range(2):
            step(model, optimizer)
    assert any(name.endswith("num_batches_tracked") for name in before)
    assert moved(model.backbone, before) == set()
    assert moved(model.head, head) == set(head)


def test_without_freezing_the_same_steps_move_everything() -> None:
    model = tracker().train()
    before = state(model.backbone)
    step(model, sgd(list(model.parameters())))
    assert moved(model.backbone, before) == set(before)


def test_a_backbone_frozen_in_the_middle_does_not_coast_on_momentum_nor_decay() -> None:
    model = tracker()
    optimizer = sgd(list(model.parameters()))
    model.train()
    step(model, optimizer)  # momentum is there now, and gradients are
    assert freeze(model.backbone, 1, unfreeze_at=5).changed
    before = state(model.backbone)
    model.train()
    optimizer.step()  # before any zero_grad
    step(model, optimizer, set_to_none=False)
    assert moved(model.backbone, before) == set()


def test_from_unfreeze_at_on_everything_moves_and_the_optimiser_is_told() -> None:
    model = tracker()
    model.train()
    changes = []
    for epoch in range(4):
        done = freeze(model.backbone, epoch, unfreeze_at=2)
        model.train()
        changes.append(done.changed)
        assert done.is_frozen == (epoch < 2)
        before = state(model.backbone)
        step(model, sgd([p for p in model.parameters() if p.requires_grad]))
        assert moved(model.backbone, before) == (set() if epoch < 2 else set(before))
    assert changes == [True, False, True, False]


def test_resuming_after_unfreeze_at_freezes_nothing() -> None:
    model = tracker().train()
    done = freeze(model.backbone, 12)
    assert (done.changed, done.is_frozen, done.frozen_params, done.frozen_norms) == (False, False, 0, 0)
    assert all(m.training for m in model.backbone.modules())


@pytest.mark.parametrize("name", ["s8", "stages.s8"])
def test_only_the_named_stages_ever_train(name: str) -> None:
    model = tracker()
    freeze(model.backbone, 0, unfreeze_at=1, stages=[name])
    for epoch in (1, 2):
        done = freeze(model.backbone, epoch, unfreeze_at=1, stages=[name])
        model.train()
        before = state(model.backbone)
        step(model, sgd(list(model.parameters())))
        inside = {key for key in before if key.startswith("stages.s8.")}
        assert inside and moved(model.backbone, before) == inside
    assert done.trainable_params == sum(p.numel() for p in model.backbone.stages["s8"].parameters())
    assert done.frozen_norms and done.trainable_norms
    assert not model.backbone.training and model.backbone.stages["s8"].training


def test_unfreezing_more_stages_later_thaws_only_those() -> None:
    model = tracker()
    freeze(model.backbone, 0, 0, stages=["s8"])
    done = freeze(model.backbone, 1, 0, stages=["s8", "s4"])
    assert done.changed
    model.train()
    before = state(model.backbone)
    step(model, sgd(list(model.parameters())))
    assert {key.split(".")[1] for key in moved(model.backbone, before)} == {"s4", "s8"}


class Wrapper(nn.Module):
    """pysot's DistModule, DataParallel: the net under `module`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


def test_a_wrapped_backbone_freezes_by_the_same_stage_names() -> None:
    model = Tracker(Wrapper(Wrapper(tracker().backbone)))
    freeze(model.backbone, 0, 0, stages=["s8"])
    model.train()
    before = state(model.backbone)
    step(model, sgd(list(model.parameters())))
    found = moved(model.backbone, before)
    assert found and all(key.startswith("module.module.stages.s8.") for key in found)


@pytest.fixture
def process_group() -> Iterator[None]:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_frozen_stages_stay_in_distributed_training() -> None:
    backbone = tracker().backbone
    freeze(backbone, 1, unfreeze_at=1, stages=["s8"])
    wrapped = nn.parallel.DistributedDataParallel(backbone)
    wrapped.train()
    before = state(backbone)
    optimizer = sgd(list(wrapped.parameters()))
    wrapped(torch.randn(2, 3, 32, 32))[-1].square().mean().backward()
    optimizer.step()
    assert {key.split(".")[1] for key in moved(backbone, before)} == {"s8"}
    assert unfreeze(wrapped).changed


def test_a_deploy_form_and_foreign_norms_freeze_too() -> None:
    spec = language.parse(NET, KINDS, name="small")
    fused = build.build(spec, KINDS, form="deploy")
    done = freeze(fused, 0)
    assert done.is_frozen and done.frozen_norms == 0 and done.frozen_params > 0
    other = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4), nn.InstanceNorm2d(4, track_running_stats=True), nn.Dropout(0.9)
    )
    assert freeze(other, 0).frozen_norms == 2
    other.train()
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(other(x), other(x))  # dropout rests
    unfreeze(other)
    assert all(m.training for m in other.modules())


def test_unfreeze_restores_what_the_trainer_had_chosen() -> None:
    model = tracker().train()
    first = next(model.backbone.parameters())
    first.requires_grad_(False)  # the trainer's own choice
    freeze(model.backbone, 0)
    freeze(model.backbone, 1)
    model.eval()  # validation
    model.train()
    done = unfreeze(model.backbone)
    assert done.changed
    assert not first.requires_grad and sum(not p.requires_grad for p in model.backbone.parameters()) == 1
    assert all(m.training for m in model.backbone.modules())
    assert all("train" not in m.__dict__ for m in model.backbone.modules())
    freeze(model.backbone, 0)
    model.eval()
    unfreeze(model.backbone)
    assert not any(m.training for m in model.backbone.modules())


def test_a_parameter_shared_with_a_frozen_stage_stays_and_is_free_afterwards() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    freeze(net, 0, 0, stages=["1"])
    assert not net[0].weight.requires_grad and net[1].bias.requires_grad
    freeze(net, 0)
    unfreeze(net)
    assert all(p.requires_grad for p in net.parameters())


def test_copies_are_frozen_for_themselves() -> None:
    backbone = tracker().backbone.train()
    freeze(backbone, 0)
    twin = copy.deepcopy(backbone)
    twin.train()
    assert not twin.training and not any(p.requires_grad for p in twin.parameters())
    unfreeze(twin)
    assert twin.training and not backbone.training


def test_the_checkpoint_of_a_frozen_backbone_is_the_usual_one(tmp_path: Path) -> None:
    backbone = tracker().backbone
    keys = list(backbone.state_dict())
    freeze(backbone, 0)
    assert list(backbone.state_dict()) == keys
    torch.save(backbone.state_dict(), tmp_path / "b.pth")
    tracker().backbone.load_state_dict(torch.load(tmp_path / "b.pth", weights_only=True))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda net: freeze("net", 0), "was given str"),  # type: ignore[arg-type]
        (lambda net: freeze(net, -1), "epoch is a whole number"),
        (lambda net: freeze(net, 1.5), "epoch is a whole number"),
        (lambda net: freeze(net, True), "epoch is a whole number"),
        (lambda net: freeze(net, 0, unfreeze_at=None), "unfreeze_at is a whole number"),
        (lambda net: freeze(net, 0, stages=["s9"]), "no stage 's9'\n  did you mean 's8'? known: s4, s8, stem"),
        (lambda net: freeze(net, 0, stages=[""]), "no stage ''"),
        (lambda net: freeze(net, 0, stages=[]), "nothing would ever train"),
    ],
)
def test_mistakes_are_told_and_change_nothing(call: Callable[[nn.Module], object], said: str) -> None:
    net = tracker().backbone.train()
    with pytest.raises(BblabError) as caught:
        call(net)
    assert said in str(caught.value)
    assert net.training and all(p.requires_grad for p in net.parameters())


def test_the_room_does_not_import_torch() -> None:
    code = "import sys, bblab.tracking; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
