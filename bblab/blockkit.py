"""What a block file may use: @block, ConvNorm, activations, padding rules, squeeze-excitation, fuse helpers.

A block is an `nn.Module` whose first arguments are `(in_ch, out_ch, stride)`; it takes `device` and `dtype` and
hands them to every layer. `deploy()` on a module returns what runs on the device: branches and norms folded.
"""

from __future__ import annotations

import copy
import difflib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

M = TypeVar("M", bound=type[nn.Module])
Layer = TypeVar("Layer", bound=nn.Module)


def block(kind: str, *, replace: bool = False, keeps_channels: bool = False, is_head: bool = False) -> Callable[[M], M]:
    """Name a module class as the block `kind` of the spec language.

    `keeps_channels`: the output always has the input's channels (pools, crops). `is_head`: stands under `head:`.
    `replace=True` takes the place of a block of the same kind. The catalogue reads these arguments from the file as
    text (`bblab.blocks`), so they must be literals.
    """

    def enter(cls: M) -> M:
        cls.kind = kind  # type: ignore[attr-defined]
        return cls

    return enter


# ---------------------------------------------------------------------------------------------- small helpers


def make_divisible(value: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`, at least `divisor`, never more than 10 % below `value`.

    The rounding of MobileNetV2 and V3 (Sandler et al. 2018, arXiv:1801.04381; Howard et al. 2019, arXiv:1905.02244).
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def positive(**values: int) -> None:
    """Refuse numbers below 1, each under the name that the spec uses."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, read {value}")


def choose(name: str, what: str, known: Iterable[str]) -> str:
    """`name` if it is known, else a ValueError with the nearest known one."""
    choice = sorted(known)
    if name in choice:
        return name
    close = difflib.get_close_matches(str(name), choice, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(f"no {what} {name!r}; {hint}known: {', '.join(choice)}")


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "hswish": nn.Hardswish,
    "hsigmoid": nn.Hardsigmoid,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "mish": nn.Mish,
}


def act(name: str | None) -> nn.Module:
    """An activation by its name in a spec; `none` or null is no activation."""
    if name is None or name == "none":
        return nn.Identity()
    return ACTIVATIONS[choose(name, "activation", [*ACTIVATIONS, "none"])]()


Pad = str | int | list[int]


def padding(pad: Pad, kernel: tuple[int, int], stride: int, dilation: int = 1) -> tuple[int, int] | None:
    """Symmetric padding (height, width) of a padding rule; None for `tf_same`, which depends on the input size.

    same: half the dilated kernel. valid: none. same_unless_strided: none where the stride is above 1 (pysot's
    rule, which keeps 127 -> 63 -> 31 -> 15 odd). tf_same: TensorFlow's SAME, as much as keeps ceil(size / stride).
    """
    if isinstance(pad, bool):
        raise ValueError(f"pad must be a rule or a number, read {pad}")
    if isinstance(pad, int):
        pad = [pad, pad]
    if isinstance(pad, (list, tuple)):
        if len(pad) != 2 or any(not isinstance(p, int) or p < 0 for p in pad):
            raise ValueError(f"pad must be a number or [height, width], none negative; read {pad}")
        return (pad[0], pad[1])
    choose(pad, "padding rule", ("same", "valid", "same_unless_strided", "tf_same"))
    if pad == "tf_same":
        return None
    if pad == "valid" or (pad == "same_unless_strided" and stride > 1):
        return (0, 0)
    return (dilation * (kernel[0] - 1) // 2, dilation * (kernel[1] - 1) // 2)


def shrinkage(pad: Pad, kernel: int | list[int], stride: int = 1, dilation: int = 1) -> tuple[int, int]:
    """Pixels (height, width) that a kernel takes from the map, beside what its stride does: 0, 0 for `same`."""
    k = (kernel, kernel) if isinstance(kernel, int) else (kernel[0], kernel[1])
    p = padding(pad, k, stride, dilation)
    return (0, 0) if p is None else (dilation * (k[0] - 1) - 2 * p[0], dilation * (k[1] - 1) - 2 * p[1])


class SamePadConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: more on the far side when the sum is odd."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for axis in (1, 0):  # F.pad wants the last dimension first
            size, k, s, d = x.shape[2 + axis], self.kernel_size[axis], self.stride[axis], self.dilation[axis]
            total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
            pads += [total // 2, total - total // 2]
        if any(pads):
            x = F.pad(x, pads)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def conv2d(
    in_ch: int,
    out_ch: int,
    kernel: int | list[int],
    stride: int = 1,
    *,
    pad: Pad = "same",
    dilation: int = 1,
    groups: int = 1,
    bias: bool = False,
    device: Any = None,
    dtype: Any = None,
) -> nn.Conv2d:
    """A convolution with the spec's padding rules. Raises ValueError with the spec's names for what cannot be."""
    if isinstance(kernel, int):
        kernel = [kernel, kernel]
    if len(kernel) != 2:
        raise ValueError(f"kernel must be a number or [height, width], read {kernel}")
    k = (kernel[0], kernel[1])
    positive(kernel=min(k), stride=stride, dilation=dilation, groups=groups)
    if in_ch % groups or out_ch % groups:
        raise ValueError(f"groups {groups} does not divide {in_ch} input and {out_ch} output channels")
    p = padding(pad, k, stride, dilation)
    cls = SamePadConv2d if p is None else nn.Conv2d
    return cls(in_ch, out_ch, k, stride, p or 0, dilation, groups, bias, device=device, dtype=dtype)


class ConvNorm(nn.Module):
    """Convolution, batch norm, activation: B, in_ch, H, W -> B, out_ch, H/stride, W/stride.

    `act=None` leaves the activation away, `norm=False` the norm; the convolution has a bias when there is no norm,
    or when `bias` says so (AlexNet-style nets keep a bias beside the norm).
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        kernel: int | list[int] = 3,
        stride: int = 1,
        *,
        pad: Pad = "same",
        dilation: int = 1,
        groups: int = 1,
        bias: bool | None = None,
        norm: bool = True,
        act: str | None = "relu",
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        has_bias = (not norm) if bias is None else bias
        self.conv = conv2d(
            in_ch, out_ch, kernel, stride, pad=pad, dilation=dilation, groups=groups, bias=has_bias, **dd
        )
        self.norm = nn.BatchNorm2d(out_ch, eps=eps, **dd) if norm else nn.Identity()
        self.act = _act(act)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))

    def deploy(self) -> nn.Module:
        has_norm = not isinstance(self.norm, nn.Identity)
        if has_norm and not own_way(self.conv, _LINEAR) and not not_affine(self.norm):
            self.conv = fold(self.conv, self.norm)
            self.norm = nn.Identity().train(self.training)
        return self


_act = act  # ConvNorm's argument has the spec's name `act` too


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation: one gate per channel from the whole map (Hu et al. 2018, arXiv:1709.01507).

    `squeeze` channels in the middle. `gate` sigmoid or hsigmoid, `act` the inner activation. `layers` says whether
    the two layers are 1x1 convolutions or linear (same numbers, other runtime kernels).
    """

    def __init__(
        self,
        channels: int,
        squeeze: int,
        *,
        act: str = "relu",
        gate: str = "hsigmoid",
        layers: str = "conv",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        positive(squeeze=squeeze)
        choose(gate, "SE gate", ("sigmoid", "hsigmoid"))
        self.is_linear = choose(layers, "SE layer type", ("conv", "linear")) == "linear"
        if self.is_linear:
            self.reduce: nn.Module = nn.Linear(channels, squeeze, **dd)
            self.expand: nn.Module = nn.Linear(squeeze, channels, **dd)
        else:
            self.reduce = nn.Conv2d(channels, squeeze, 1, **dd)
            self.expand = nn.Conv2d(squeeze, channels, 1, **dd)
        self.act = _act(act)
        self.gate = _act(gate)

    def forward(self, x: Tensor) -> Tensor:
        s = x.mean((2, 3), keepdim=not self.is_linear)
        s = self.gate(self.expand(self.act(self.reduce(s))))
        return x * (s[:, :, None, None] if self.is_linear else s)


_SE_DEFAULTS = {"ratio": 0.25, "gate": "hsigmoid", "act": "relu", "divisor": 8, "base": "width", "layers": "conv"}


def squeeze_excite(
    se: dict[str, Any] | None, channels: int, *, in_ch: int | None = None, device: Any = None, dtype: Any = None
) -> nn.Module:
    """The SE of a spec's `se: {ratio, gate, act, divisor, base, layers, squeeze}`; identity where `se` is null.

    ratio: squeezed share of the base. base: `width` (the channels that SE gates) or `input` (the block's input,
    EfficientNet). divisor: rounding of the squeezed width (8 MobileNet, 1 EfficientNet). squeeze: the width itself.
    """
    if se is None:
        return nn.Identity()
    for key in se:
        choose(key, "key of se", [*_SE_DEFAULTS, "squeeze"])
    s = {**_SE_DEFAULTS, **se}
    for key in ("ratio", "divisor", "squeeze"):
        if key in s and (isinstance(s[key], bool) or not isinstance(s[key], (int, float)) or s[key] <= 0):
            raise ValueError(f"se: {key} must be a number above 0, read {s[key]!r}")
    choose(str(s["base"]), "SE base", ("width", "input"))
    base = channels if s["base"] == "width" or in_ch is None else in_ch
    wanted = base * s["ratio"]
    squeeze = s.get("squeeze") or (make_divisible(wanted, s["divisor"]) if s["divisor"] > 1 else max(1, int(wanted)))
    return SqueezeExcite(
        channels, int(squeeze), act=s["act"], gate=s["gate"], layers=s["layers"], device=device, dtype=dtype
    )


def channel_shuffle(x: Tensor, groups: int = 2) -> Tensor:
    """Interleave the channel groups, so that the next split mixes them (ShuffleNet, arXiv:1707.01083)."""
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


def crop(x: Tensor, height: int, width: int | None = None) -> Tensor:
    """Take `height` pixels from the top and the bottom and `width` (default: as many) from both sides."""
    width = height if width is None else width
    if height == width == 0:
        return x
    return x[:, :, slice(height, -height or None), slice(width, -width or None)]


# ---------------------------------------------------------------------------------------------- folding


_LINEAR = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    nn.Linear,
)
_NORMS = (nn.SyncBatchNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def own_way(layer: nn.Module, kinds: tuple[type[nn.Module], ...]) -> str:
    """Why a layer may do something else with its weights than the torch class (one of `kinds`) that it comes from.

    Empty where it cannot: its forward is the class's (or pads first), nothing is hooked in, its weight is no result.
    """
    name = type(layer).__name__
    base = next((kind for kind in kinds if isinstance(layer, kind)), None)
    if base is None:
        return f"{name} is another kind of layer"
    for step in ("forward", "_conv_forward", "__call__"):
        own = getattr(type(layer), step, None)
        if step in vars(layer) or own not in (getattr(base, step, None), getattr(SamePadConv2d, step, None)):
            return f"{name} has a {step} of its own"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return f"{name} has a hook in its forward"
    if "weight" not in layer._parameters:
        return f"the weight of {name} is computed from others (a parametrisation)"
    return ""


def not_affine(norm: Any) -> str:
    """Why a norm is not one scale and shift per channel; empty where it is."""
    why = own_way(norm, _NORMS)
    if not why and norm.training:
        why = f"{type(norm).__name__} is in training mode"
    if not why and (norm.running_mean is None or norm.running_var is None):
        why = f"{type(norm).__name__} has no running statistics: it takes those of the batch that it sees"
    return why


def fold(layer: Layer, norm: nn.Module) -> Layer:
    """One convolution (plain, transposed) or linear layer that equals `norm(layer(x))` with the running statistics.

    Linear, hence exact. Raises ValueError where it would not be: a forward of its own, a hook, no statistics.
    """
    why = own_way(layer, _LINEAR) or not_affine(norm)
    if why:
        raise ValueError(f"the norm cannot be folded: {why}")
    return with_weights(layer, *folded(layer, norm))


def folded(layer: nn.Module, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer with the norm behind it folded in, in float64; None or an identity changes nothing.

    Raises ValueError for a norm that is not one scale and shift per channel.
    """
    if norm is None or isinstance(norm, nn.Identity):
        return scaled(layer)
    why = not_affine(norm)
    if why:
        raise ValueError(f"the norm cannot be folded: {why}")
    return scaled(layer, *affine(norm))


def scaled(layer: Any, scale: Tensor | None = None, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weight and bias, in float64, of a layer whose output is multiplied by `scale` and moved by `shift`, per channel.

    Output channels are axis 0 of the weight; of a transposed convolution's they are axis 1, group by group.
    """
    weight = layer.weight.detach().double()
    is_transposed = isinstance(layer, _LINEAR[3:6])
    groups = layer.groups if is_transposed else 1
    channels = weight.shape[1] * groups if is_transposed else weight.shape[0]
    bias = weight.new_zeros(channels) if layer.bias is None else layer.bias.detach().double()
    if scale is None or shift is None:
        return weight, bias
    if not is_transposed:
        return weight * scale.reshape(-1, *[1] * (weight.dim() - 1)), bias * scale + shift
    grouped = weight.reshape(groups, -1, *weight.shape[1:])  # groups, inputs of a group, its outputs, kernel
    grouped = grouped * scale.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))
    return grouped.reshape(weight.shape), bias * scale + shift


def affine(norm: Any) -> tuple[Tensor, Tensor]:
    """A batch norm in eval mode as scale and shift per channel, in float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    mean = norm.running_mean.double()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -mean * scale
    return scale, shift if norm.bias is None else norm.bias.detach().double() + shift


def with_weights(like: Layer, kernel: Tensor, bias: Tensor) -> Layer:
    """A layer of the same class and geometry as `like` with this kernel and bias. Its constructor is not called.

    A convolution's kernel may have another size: the padding grows by as much.
    """
    new: Any = copy.copy(like)  # torch has no type for "a convolution or a linear layer"
    new._parameters = dict(like._parameters)
    dtype = new.weight.dtype
    new.weight = nn.Parameter(kernel.to(dtype))
    new.bias = nn.Parameter(bias.to(dtype))
    size = tuple(kernel.shape[2:])
    old = getattr(new, "kernel_size", size)
    if size != old:
        if isinstance(new.padding, str):
            raise ValueError(f"a kernel grows only beside padding in numbers, read {new.padding!r}")
        new.kernel_size = size
        new.padding = tuple(new.padding[i] + (size[i] - old[i]) // 2 * new.dilation[i] for i in range(len(size)))
        new._reversed_padding_repeated_twice = [p for p in reversed(new.padding) for _ in range(2)]
    return new.train(like.training)


def grow_kernel(kernel: Tensor, size: int) -> Tensor:
    """A kernel padded with zeros to size x size, its centre unmoved (odd sizes)."""
    extra = [(size - k) // 2 for k in kernel.shape[2:]]
    return F.pad(kernel, [extra[1], extra[1], extra[0], extra[0]])


def identity_kernel(channels: int, groups: int, size: int, like: Tensor) -> Tensor:
    """The kernel of a convolution that returns its input."""
    per_group = channels // groups
    kernel = torch.zeros(channels, per_group, size, size, device=like.device, dtype=like.dtype)
    if not kernel.is_meta:
        index = torch.arange(channels)
        kernel[index, index % per_group, size // 2, size // 2] = 1
    return kernel


def margin(kernel: int, stride: int, pad: Pad, dilation: int) -> tuple[int, int]:
    """Pixels (height, width) a side that a kernel loses where it is not padded: what a 1x1 beside it must crop.

    Raises ValueError for kernels and paddings beside which a 1x1 and the identity cannot be folded.
    """
    positive(kernel=kernel)
    if kernel % 2 == 0:
        raise ValueError(f"kernel must be odd, so that 1x1 and identity fall on its centre; read {kernel}")
    if pad == "tf_same":
        raise ValueError("pad tf_same moves the kernel's centre with the input size: the branches would not fold")
    around = shrinkage(pad, kernel, stride, dilation)
    if min(around) < 0:
        raise ValueError(f"pad {pad} is more than `same`: scale and identity have no pixels there")
    return around[0] // 2, around[1] // 2


class RepConv(nn.Module):
    """Parallel linear branches in training, one convolution on the device: B, in_ch, H, W -> B, out_ch, H/s, W/s.

    The sum of `branches` convolutions, a 1x1 (`scale`: only where the kernel is larger) and the input itself
    (`identity`: only where channels and stride allow it), each with its batch norm; then SE (`se`) and `act`.
    Ding et al. 2021, arXiv:2101.03697; several convolutions and depthwise layers: arXiv:2206.04040.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        branches: int = 1,
        scale: bool = True,
        identity: bool = True,
        pad: Pad = "same",
        dilation: int = 1,
        groups: int = 1,
        se: dict[str, Any] | None = None,
        act: str | None = "relu",
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        positive(branches=branches)
        self.around = margin(kernel, stride, pad, dilation)
        shared: dict[str, Any] = {"groups": groups, "act": None, "eps": eps, **dd}
        self.convs = nn.ModuleList(
            ConvNorm(in_ch, out_ch, kernel, stride, pad=pad, dilation=dilation, **shared) for _ in range(branches)
        )
        self.scale = ConvNorm(in_ch, out_ch, 1, stride, **shared) if scale and kernel > 1 else None
        self.identity = nn.BatchNorm2d(in_ch, eps=eps, **dd) if identity and in_ch == out_ch and stride == 1 else None
        self.se = squeeze_excite(se, out_ch, in_ch=in_ch, **dd)
        self.act = _act(act)

    def forward(self, x: Tensor) -> Tensor:  # B, in_ch, H, W
        total = self.convs[0](x)  # B, out_ch, H/stride, W/stride
        for conv in self.convs[1:]:
            total = total + conv(x)
        if self.scale is not None or self.identity is not None:
            inner = crop(x, *self.around)
            if self.scale is not None:
                total = total + self.scale(inner)
            if self.identity is not None:
                total = total + self.identity(inner)
        return self.act(self.se(total))

    def deploy(self) -> nn.Module:
        """One convolution that equals the sum of the branches, then SE and activation; folded in float64."""
        branches = [m for m in (*self.convs, self.scale) if isinstance(m, ConvNorm)]
        like = branches[0].conv
        size = like.kernel_size[0]
        kernel, bias = folded(like, branches[0].norm)
        for branch in branches[1:]:
            own_kernel, own_bias = folded(branch.conv, branch.norm)
            kernel, bias = kernel + grow_kernel(own_kernel, size), bias + own_bias
        if self.identity is not None:
            gain, shift = affine(self.identity)
            same = identity_kernel(like.out_channels, like.groups, size, kernel)
            kernel, bias = kernel + same * gain[:, None, None, None], bias + shift
        steps = {"conv": with_weights(like, kernel, bias), "se": self.se, "act": self.act}
        kept = OrderedDict((name, step) for name, step in steps.items() if not isinstance(step, nn.Identity))
        return nn.Sequential(kept).train(self.training)


class RepConvNorm(nn.Module):
    """RepConv with its norm after the sum: B, in_ch, H, W -> B, out_ch, H/s, W/s; one convolution on the device.

    The sum of a convolution with norm, a 1x1 without (`scale_bias`: with a bias) and the input itself (where channels
    and stride allow it), then a norm and `act`. QARepVGG, arXiv:2212.01593; depthwise in RepViT, arXiv:2307.09283.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        scale_bias: bool = False,
        pad: Pad = "same",
        dilation: int = 1,
        groups: int = 1,
        act: str | None = "relu",
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.around = margin(kernel, stride, pad, dilation)
        self.conv = ConvNorm(
            in_ch, out_ch, kernel, stride, pad=pad, dilation=dilation, groups=groups, act=None, eps=eps, **dd
        )
        self.scale = conv2d(in_ch, out_ch, 1, stride, groups=groups, bias=scale_bias, **dd)
        self.has_identity = in_ch == out_ch and stride == 1
        self.norm = nn.BatchNorm2d(out_ch, eps=eps, **dd)
        self.act = _act(act)

    def forward(self, x: Tensor) -> Tensor:  # B, in_ch, H, W
        inner = crop(x, *self.around)
        total = self.conv(x) + self.scale(inner)  # B, out_ch, H/stride, W/stride
        return self.act(self.norm(total + inner if self.has_identity else total))

    def deploy(self) -> nn.Module:
        """One convolution that equals the normed sum, then the activation; folded in float64."""
        like = self.conv.conv
        size = like.kernel_size[0]
        kernel, bias = folded(like, self.conv.norm)
        point, point_bias = folded(self.scale, None)
        kernel, bias = kernel + grow_kernel(point, size), bias + point_bias
        if self.has_identity:
            kernel = kernel + identity_kernel(like.out_channels, like.groups, size, kernel)
        gain, shift = affine(self.norm)
        conv = with_weights(like, kernel * gain[:, None, None, None], bias * gain + shift)
        act = [] if isinstance(self.act, nn.Identity) else [self.act]
        return nn.Sequential(conv, *act).train(self.training)


_DEPLOY_NAMES = (
    "deploy", "reparameterize", "switch_to_deploy", "convert_to_deploy", "fuse",
    "merge_kernel",  # DingXiaoH/RepLKNet-pytorch
    "merge_dilated_branches",  # AILab-CVC/UniRepLKNet
    "fuse_convs",  # meituan/YOLOv6 and what took its RepConv
)  # fmt: skip
"""What authors call the method that fuses a block; the first that is there is called."""


def deploy(module: nn.Module) -> nn.Module:
    """A fused copy in eval mode: what runs on the device. The module itself is left as it is."""
    return deploy_in_place(copy.deepcopy(module).eval())


def deploy_method(module: nn.Module) -> Callable[[], Any] | None:
    """The module's own way to fuse itself: one of `_DEPLOY_NAMES` that needs no argument."""
    for name in _DEPLOY_NAMES:
        method = getattr(module, name, None)
        if callable(method) and not isinstance(method, nn.Module):  # a layer may be called `fuse` too
            try:
                inspect.signature(method).bind()
            except (TypeError, ValueError):
                continue  # fuse(a, b) joins two maps
            return method
    return None


def fused(module: nn.Module, method: Callable[[], Any]) -> nn.Module | None:
    """What the module's method returns, or the module where it fuses in place; None where it did nothing."""
    before = parts(module)
    made = method()
    if not isinstance(made, nn.Module) or made is module:
        if parts(module) == before:
            return None
        made = module
    return made.train(module.training)


def parts(module: nn.Module) -> list[tuple[Any, ...]]:
    """Every submodule, parameter and buffer by name and identity: the same before and after a method did nothing."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    held = [(name, id(t), t.dtype, t.data_ptr()) for name, t in tensors]
    return [*((name, id(part)) for name, part in module.named_modules()), *held]


def deploy_in_place(
    module: nn.Module,
    fuse: Callable[[nn.Module, Callable[[], Any]], nn.Module | None] = fused,
    done: dict[int, tuple[nn.Module, nn.Module]] | None = None,
) -> nn.Module:
    """The fused form of a module in eval mode, made of the module itself, which must not be used any more.

    A module of several names is fused once, and all its names have the fused form. `fuse` calls a module's method;
    Where that gives None it did nothing (LeViT's residual returns itself), and the module's parts are fused, as where
    it has no method. `done` holds, by id, each module met and what became of it.
    """
    done = {} if done is None else done
    if id(module) in done:
        return done[id(module)][1]
    if isinstance(module, torch.jit.ScriptModule):
        return module
    method = deploy_method(module)
    whole = None if method is None else fuse(module, method)
    made = module if whole is None else whole
    done[id(module)] = (module, made)
    done[id(made)] = (made, made)  # a fused module is not fused again, whoever holds it
    if whole is None:
        for name, child in list(module._modules.items()):
            new = child if child is None else deploy_in_place(child, fuse, done)
            if new is not child:
                setattr(module, name, new)
    return made
