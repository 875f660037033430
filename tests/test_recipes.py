"""Recipes: every number has its place, every mistake is told, and the cost follows from the numbers."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from bblab.errors import BblabError, SpecError
from bblab.pretraining import recipe
from bblab.pretraining.recipe import Recipe
from bblab.rooms import Rooms

SHIPPED = {
    "rank16", "short32", "full88", "mobileone300", "repvgg120", "mobilenetv3_600", "shufflenetv2_300", "rsb_a3",
    "digits",
}  # fmt: skip
MINIMAL = "about: a\nsource: b\nepochs: 10\noptimizer: sgd\nlr: 0.1\nbase_batch: 256\nschedule: cosine\n"


@pytest.fixture(scope="module")
def shipped() -> dict[str, Recipe]:
    return {r.name: r for r in recipe.read_all(Rooms(Path("/no/lab")))}


def parse(text: str) -> Recipe:
    return recipe.parse(text, "r.yaml", "r")


def complaints(text: str) -> str:
    with pytest.raises(SpecError) as error:
        parse(text)
    return str(error.value)


def test_the_recipes_that_are_promised_are_shipped_each_with_a_source(shipped):
    assert set(shipped) >= SHIPPED
    assert all(r.source and r.about for r in shipped.values())


def test_every_recipe_but_the_digits_names_a_published_result(shipped):
    assert all(r.published for name, r in shipped.items() if name != "digits")


def test_the_ramps_are_those_of_the_source(shipped):
    # ffcv: linear between two epochs, rounded to a multiple of 32 (half to even: 176 / 32 = 5.5 becomes 6)
    for name, start, end in (("rank16", 11, 13), ("short32", 23, 27), ("full88", 65, 76)):
        r = shipped[name]
        for epoch in range(r.epochs):
            share = min(max((epoch - start) / (end - start), 0), 1)
            assert r.resolution_at(epoch) == round((160 + 32 * share) / 32) * 32, (name, epoch)


def test_the_step_at_the_start_of_shufflenets_recipe_is_its_5000_steps(shipped):
    r = shipped["shufflenetv2_300"]
    assert r.warmup_epochs * 1_281_167 / r.base_batch == pytest.approx(5000, rel=0.01)
    assert (r.warmup, r.warmup_start_factor) == ("constant", 0.1)


def test_floors_are_those_of_the_sources(shipped):
    for name in ("mobileone300", "rsb_a3"):
        assert shipped[name].lr * shipped[name].final_lr_ratio == pytest.approx(1e-6)


def test_the_annealed_recipe_spares_norms(shipped):
    r = shipped["mobileone300"]
    assert (r.weight_decay, r.final_weight_decay, r.decays_norms) == (1e-4, 1e-5, False)


def test_digits_are_never_mirrored(shipped):
    assert [s["step"] for s in shipped["digits"].augment] == ["random_resized_crop"]


def test_validation_resizes_to_the_crop_over_its_ratio(shipped):
    assert shipped["mobileone300"].val_resize_px == 256  # 224 / 0.875
    assert shipped["rsb_a3"].val_resize_px == 236  # 224 / 0.95, as in mmpretrain's file
    assert shipped["digits"].val_resize_px == 48


def test_all_mistakes_are_told_at_once_with_their_places():
    text = (
        MINIMAL.replace("sgd", "sdg").replace("lr: 0.1", "lr: fast")
        + "warmup_epoch: 5\nlabel_smoothing: 2\naugment: [flip, {rand_augment: {magnitud: 6}}, jpeg]\n"
        + "resolution_ramp: [12]\npublished: [{top1_percent: high}]\n"
    )
    said = complaints(text)
    for line, words in (
        (4, "optimizer must be 'sgd' or 'rmsprop'"), (5, "lr must be a number, read \"fast\""),
        (8, "a recipe has no 'warmup_epoch'"), (9, "label_smoothing must be from 0 to 0.999"),
        (10, "rand_augment has no 'magnitud'"), (10, "no augmentation 'jpeg'"),
        (10, "flip stands at place 1"), (11, "a list of [epoch, px]"), (12, "top1_percent must be a number"),
        (12, "a published result needs its 'net'"),
    ):  # fmt: skip
        assert any(f"r.yaml:{line}:" in part and words in part for part in said.splitlines()), (words, said)
    assert "did you mean 'sgd'" in said and "did you mean 'warmup_epochs'" in said


def test_missing_numbers_are_named():
    said = complaints("about: x\n")
    assert all(f"{key!r} is missing" in said for key in ("source", "epochs", "optimizer", "lr", "base_batch"))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("warmup_epochs: 10\n", "leave none"),
        ("resolution_ramp: [[10, 192]]\n", "after the last"),
        ("resolution_ramp: [[6, 192], [6, 224]]\n", "must rise"),
        ("resolution_ramp: [[6, 0]]\n", "8 to 4096 px"),
        ("gamma: 0.9\n", "no effect with schedule cosine"),
        ("betas: [0.9, 0.99]\n", "no effect with optimizer sgd"),
        ("final_weight_decay: 0.1\n", "above weight_decay"),
        ("loss: bce\nlabel_smoothing: 0.1\n", "goes with loss ce"),
        ("epochs: 11\n", "stands twice"),
        ("augment: [flip, random_resized_crop]\n", "exactly one crop"),
        ("augment: [random_resized_crop: {scale: [1, 0.1]}]\n", "[least, most]"),
        ("augment: flip\n", "must be a list"),
        ("name: other\n", "named after its file"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(more, words):
    assert words in complaints(MINIMAL + more)


def test_a_schedule_that_needs_numbers_asks_for_them():
    assert "needs 'gamma'" in complaints(MINIMAL.replace("cosine", "exponential"))
    assert "needs 'milestones'" in complaints(MINIMAL.replace("cosine", "step") + "gamma: 0.1\n")
    assert parse(MINIMAL.replace("cosine", "step") + "gamma: 0.1\nmilestones: [3, 6]\n").milestones == (3, 6)


def test_a_step_without_numbers_has_its_defaults():
    r = parse(MINIMAL + "augment: [random_resized_crop, flip]\n")
    assert r.augment == (
        {"step": "random_resized_crop", "scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)},
        {"step": "flip", "prob": 0.5},
    )


def test_a_list_in_place_of_a_map_is_no_recipe():
    assert "a recipe must be a map" in complaints("- 1\n")


def test_hours_follow_from_rate_pixels_and_validation():
    r = parse(MINIMAL.replace("epochs: 10", "epochs: 2") + "resolution_px: 112\nresolution_ramp: [[1, 224]]\n")
    # At 100 images/s of 224 px: 112 px has a quarter of the pixels. 1000 images at 400/s + 1000 at 100/s = 12.5 s.
    # Validation: 2 x 300 images at 224 px, three times as fast: 2 s.
    assert r.hours(100, 224, train_images=1000, val_images=300) * 3600 == pytest.approx(14.5)
    assert r.epochs_at(224) == pytest.approx(1.25)


def test_a_slow_loader_sets_the_hours():
    r = parse(MINIMAL.replace("epochs: 10", "epochs: 1"))
    assert r.hours(1e9, loader_images_per_s=100, train_images=1000, val_images=0) * 3600 == pytest.approx(10)


def test_an_unknown_recipe_lists_the_near_ones():
    with pytest.raises(BblabError) as error:
        recipe.find("rank61", Rooms(Path("/no/lab")))
    assert "did you mean 'rank16'" in str(error.value)


def test_a_labs_recipe_is_found_and_listed(bblab, lab):
    (lab / "pretrain").mkdir()
    (lab / "pretrain" / "mine.yaml").write_text(MINIMAL)
    assert "mine" in bblab("recipes").out
    assert "cosine" in bblab("recipes", "mine").out


def test_a_recipe_is_read_from_a_path(tmp_path):
    (tmp_path / "here.yaml").write_text(MINIMAL)
    assert recipe.find(str(tmp_path / "here.yaml"), Rooms(Path("/no/lab"))).name == "here"


def test_the_command_lists_every_recipe_with_its_result(bblab):
    ran = bblab("recipes")
    assert ran.code == 0
    assert all(name in ran.out for name in SHIPPED)
    assert "66.9 % resnet18, 35 min on one A100" in ran.out


def test_the_command_tells_hours_and_what_they_assume(bblab):
    ran = bblab("recipes", "--rate", "1000@224", "--json", "-")
    listed = {r["name"]: r for r in json.loads(ran.out)}
    cost = listed["repvgg120"]["cost"]
    # 120 epochs of 1,281,167 images at 1000/s and 50,000 at 3000/s
    assert cost["hours"] == pytest.approx(120 * (1281.167 + 50 / 3) / 3600)
    assert cost["hours_assume"]["images_per_s"] == 1000
    assert "images/s of 224 px" in bblab("recipes", "--rate", "1000").out


def test_hours_come_from_the_newest_training_in_the_lab(bblab, lab):
    from bblab.store import Store

    inputs = {"recipe": {"resolution_px": 112, "resolution_ramp": []}}
    with Store.open(lab / "lab.sqlite") as store:
        run = store.add(
            "pretrain", spec_id="", name="net", code_version="1", inputs=inputs,
            result={"images_per_s": 4000.0, "epochs_trained": 3, "device": "a card"},
        )  # fmt: skip
    (found,) = (r for r in json.loads(bblab("recipes", "--json", "-").out) if r["name"] == "repvgg120")
    assert found["cost"]["hours"] == pytest.approx(120 * (1281.167 + 50 / 3) / 3600)  # 4000 of 112 px: 1000 of 224
    assert f"run {run}, net on a card" in bblab("recipes").out


def test_one_recipe_whole_shows_every_number_that_has_an_effect(bblab):
    out = bblab("recipes", "mobilenetv3_600").out
    for words in (
        "rms_alpha",
        "0.0316",
        "0.973",
        "auto_augment (policy imagenet)",
        "random_erasing (prob 0.2",
        "66.68 %",
    ):
        assert words in out
    assert "betas" not in out and "nesterov" not in out


@pytest.mark.parametrize("rate", ["fast", "0", "100@", "100@1", "-3@224", "nan"])
def test_a_wrong_rate_is_refused(bblab, rate):
    ran = bblab("recipes", "--rate", rate)
    assert ran.code == 2 and "3000@160" in ran.err


def test_a_recipe_is_plain_data():
    from dataclasses import asdict

    value = json.loads(json.dumps(asdict(parse(MINIMAL + "augment: [random_resized_crop]\n"))))
    assert {f.name for f in fields(Recipe)} == set(value)
