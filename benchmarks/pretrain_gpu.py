"""Training speed on a CUDA GPU: a net's train form at 160 px, bf16, channels_last, against mmpretrain's stock config.

Images a second from synthetic tensors and from JPEGs, absolute, as a ratio to the stock config (float32, its own
loader) in the same run, and as a share of the chip's bf16 rate. Without a GPU it says so and ends.
`python benchmarks/pretrain_gpu.py [DATA] [SPEC] [BATCH]`
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

BF16_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}
"""Dense bf16 rates of the makers' data sheets, without sparsity."""
PX = 160


def stock(config: dict[str, Any]) -> None:
    """mmpretrain's own MobileOne pipeline, and no channels_last."""
    config["model"]["backbone"]["channels_last"] = False
    config["train_dataloader"]["dataset"]["pipeline"] = [
        {"type": "LoadImageFromFile"},
        {"type": "RandomResizedCrop", "scale": PX, "backend": "pillow"},
        {"type": "RandomFlip", "prob": 0.5, "direction": "horizontal"},
        {"type": "PackInputs"},
    ]


def main(data: str | None, spec: str, batch: int) -> int:
    import torch

    if not torch.cuda.is_available():
        print("no CUDA GPU here: nothing measured (run this on a machine that has one)")
        return 0
    from bblab.lab import Lab, training
    from bblab.pretraining import estimate, run

    name = torch.cuda.get_device_name()
    rate = next((v for k, v in BF16_FLOPS.items() if k in name), None)
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder) / "lab")
        wanted = training.Wanted(data=data, recipe="rank16", batch_size=batch)
        made = training.plan(lab, lab.spec(spec), wanted)
        recipe = replace(made.recipe, resolution_px=PX, resolution_ramp=())
        macs = lab.analyst.cost(lab.spec(spec), "train", (PX, PX)).macs
        rows: dict[str, Any] = {}
        for label, precision, is_compiled in (
            ("stock: float32", "fp32", False), ("bf16", "bf16", False), ("bf16, compiled", "bf16", True),
        ):  # fmt: skip
            settings = replace(made.settings, precision=precision, compile=is_compiled)
            settled = run.settle(replace(made, recipe=recipe, settings=settings))
            torch.cuda.empty_cache()
            alter = stock if label.startswith("stock") else None
            e = estimate.estimate(settled, Path(folder), budget_s=10, alter=alter)
            used = 3 * 2 * macs * e.net_images_per_s  # backward is twice the forward pass; 2 operations a multiply-add
            rows[label] = {
                "net_images_per_s": e.net_images_per_s,
                "loader_images_per_s": e.loader_images_per_s,
                "workers": e.workers,
                "peak_memory_bytes": e.peak_memory_bytes,
                "bf16_rate_share": used / rate if rate else None,
            }
    base = rows["stock: float32"]["net_images_per_s"]
    for row in rows.values():
        row["against_stock"] = row["net_images_per_s"] / base
    print(json.dumps({"device": name, "spec": spec, "px": PX, "batch": batch, "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    given = dict(enumerate(sys.argv[1:]))
    sys.exit(main(given.get(0), given.get(1, "mobileone_s0"), int(given.get(2, 256))))
