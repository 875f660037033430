"""Classification head: pool the map, optionally one or more hidden layers, then one score a class.

Lin et al. 2014 (global average pooling), arXiv:1312.4400; a hidden layer after it: MobileNetV3, arXiv:1905.02244.
"""

from typing import Any, Literal

from torch import Tensor, nn

from bblab.blockkit import act as activation
from bblab.blockkit import block, positive


@block("classifier", is_head=True)
class Classifier(nn.Module):
    """Pool, flatten, hidden layers with activation, dropout, linear.

    pool: avg or max brings the map to side x side; none takes it as it is (it must be side x side).
    side: height and width of the map that the first linear layer sees.
    hidden: width of a hidden linear layer, or a list of widths; null for none.
    hidden_act: activation after each hidden layer.
    hidden_dropout: share of the values dropped before each hidden layer while training (AlexNet).
    dropout: share of the values dropped before the last layer while training.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        *,
        pool: Literal["avg", "max", "none"] = "avg",
        side: int = 1,
        hidden: int | list[int] | None = None,
        hidden_act: str | None = "relu",
        hidden_dropout: float = 0.0,
        dropout: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if pool not in ("avg", "max", "none"):
            raise ValueError(f"pool must be avg, max or none, read {pool!r}")
        for name, share in (("hidden_dropout", hidden_dropout), ("dropout", dropout)):
            if not 0 <= share < 1:
                raise ValueError(f"{name} must be from 0 to below 1, read {share}")
        widths = [] if hidden is None else [hidden] if isinstance(hidden, int) else list(hidden)
        for width in widths:
            positive(hidden=width)
        positive(side=side, out=out_ch)
        pools = {"avg": nn.AdaptiveAvgPool2d, "max": nn.AdaptiveMaxPool2d}
        self.pool = pools[pool](side) if pool != "none" else nn.Identity()
        features = in_ch * side * side
        layers: list[nn.Module] = []
        for width in widths:
            if hidden_dropout:
                layers.append(nn.Dropout(hidden_dropout))
            layers += [nn.Linear(features, width, **dd), activation(hidden_act)]
            features = width
        self.hidden = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.last = nn.Linear(features, out_ch, **dd)

    def forward(self, x: Tensor) -> Tensor:  # B, in_ch, H, W
        flat = self.pool(x).flatten(1)  # B, in_ch * side * side
        return self.last(self.dropout(self.hidden(flat)))  # B, out_ch
