"""No trainer: a module of its own and its weights, for a trainer that you write or change yourself."""

from pathlib import Path

from bblab.export.target import TARGETS, Target, Variant

TARGETS.add(
    "generic",
    Target(
        name="generic",
        trainer="your own trainer",
        repository="",
        commit="",
        sources=(),
        file=Path(__file__),
        max_taps=None,
        input="rgb_imagenet",
        padding="any",
        freeze_epochs=10,
        freeze="a norm whose scale does not require grad keeps its statistics, whatever calls train()",
        variants={
            "rgb": Variant("RGB with ImageNet's mean and deviation taken out, as in pretraining"),
            "bgr255": Variant("raw BGR, 0 to 255; the module normalises", values={"input": "bgr255"}),
        },
        notes=("One tap gives a tensor, several give a list: Backbone(used_layers=[...]) chooses.",),
    ),
)
