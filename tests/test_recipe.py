import dataclasses

import pytest
import tomli_w

from moco import recipe, recipe_file
from moco.build import build_dictionary, resolve
from moco.data.augmentation import SMALL
from moco.data.source import ArraySource
from moco.images import Data
from moco.recipe import Recipe
from moco.recipes import RECIPES, get
from tiny import CPU, tiny_data, tiny_recipe, tiny_run


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_its_file(name, tmp_path):
    values = RECIPES[name]()
    (tmp_path / "recipe.toml").write_text(recipe_file.text(values, {"data": "somewhere"}))
    assert recipe_file.read(tmp_path / "recipe.toml") == (values, {"data": "somewhere"})
    assert values.name == name


@pytest.mark.parametrize(
    "change",
    [
        {"keys": recipe.TiedKeys(), "dictionary": recipe.InBatch()},
        {"keys": recipe.QueryKeys(), "dictionary": recipe.MemoryBank(size=9)},
        {"loss": recipe.Margin(0.3)},
        {"loss": recipe.NCE()},
        {"optimizer": recipe.LARS()},
        {"optimizer": recipe.AdamW(betas=(0.9, 0.95))},
        {"schedule": recipe.Exponential()},
        {
            "encoder": dataclasses.replace(tiny_recipe().encoder, bn_group=None),
            "keys": recipe.MomentumKeys(shuffle=False),
        },
    ],
)
def test_every_kind_survives_its_file(change, tmp_path):
    values = tiny_recipe(**change)
    (tmp_path / "r.toml").write_text(recipe_file.text(values))
    assert recipe_file.read(tmp_path / "r.toml")[0] == values


def test_recipes_are_the_papers():
    v1, v2, instagram, cifar = (RECIPES[n]() for n in ("v1", "v2", "instagram", "cifar"))
    assert (v1.dictionary.size, v1.keys.momentum, v1.loss.temperature) == (65536, 0.999, 0.07)
    assert (v1.batch, v1.epochs, v1.optimizer.lr, v1.optimizer.weight_decay) == (256, 200, 0.03, 1e-4)
    assert v1.views.grayscale_first
    assert (v1.views.hue, v1.views.jitter_probability, v1.views.blur_probability) == (0.4, 1.0, 0.0)
    assert (v2.encoder.head, v2.loss.temperature, v2.views.blur_probability) == ("mlp", 0.2, 0.5)
    assert (v2.views.hue, v2.views.jitter_probability, v2.views.grayscale_first) == (0.1, 0.8, False)
    assert (instagram.batch, instagram.iterations, instagram.epochs) == (1024, 1_250_000, None)
    assert (cifar.batch, cifar.encoder.bn_group, cifar.dictionary.size) == (512, 64, 4096)
    assert (cifar.keys.momentum, cifar.loss.temperature, cifar.optimizer.weight_decay) == (0.99, 0.1, 5e-4)
    assert cifar.views.scale == (0.08, 1.0)
    v3 = RECIPES["v3"]()
    assert (v3.batch, v3.epochs, v3.optimizer.lr, v3.optimizer.weight_decay) == (4096, 100, 0.6, 1e-6)
    assert (v3.encoder.hidden, v3.encoder.dim, v3.encoder.bn_group) == (4096, 256, None)
    assert (v3.keys.momentum, v3.loss.temperature, v3.schedule.warmup) == (0.99, 1.0, 10)
    assert (v3.views.blur_probability, v3.views.second_blur_probability) == (1.0, 0.1)
    assert (v3.views.saturation, v3.views.second_solarize_probability) == (0.2, 0.2)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_state_command_and_result(name):
    documentation = RECIPES[name].__doc__
    assert f"moco pretrain {name}" in documentation
    assert "not run" in documentation or "Result" in documentation


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 1}, "batch must be at least 2 images, got 1"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epochs": None}, "give epochs or iterations"),
        ({"iterations": 5}, "give epochs or iterations"),
        ({"batch": 18}, "encoder.bn_group must divide the batch, got groups of 4 in a batch of 18"),
        ({"accumulate": 3}, "accumulate must split the batch of 16 into parts of whole"),
        ({"accumulate": 8}, "accumulate must split the batch of 16 into parts of whole"),
        ({"keys": recipe.QueryKeys()}, "query keys and a memory bank go together"),
        ({"dictionary": recipe.MemoryBank()}, "query keys and a memory bank go together"),
        ({"keys": recipe.TiedKeys()}, "tied keys change at every step"),
        (
            {"keys": recipe.QueryKeys(), "dictionary": recipe.MemoryBank(), "symmetric": True},
            "symmetric must be off with a memory bank",
        ),
        (
            {"keys": recipe.TiedKeys(), "dictionary": recipe.InBatch(), "accumulate": 2},
            "accumulate needs keys that carry no gradient",
        ),
        (
            {"encoder": recipe.Encoder(bn_group=16)},
            "keys.shuffle needs at least two batch-normalisation groups",
        ),
        ({"encoder": recipe.Encoder(bn_group=None)}, "keys.shuffle needs at least two"),
        (
            {"accumulate": 2, "loss": recipe.Margin()},
            "accumulate needs a loss that is a mean",
        ),
        ({"precision": "float16"}, "precision must be one of auto, float32, bfloat16, got 'float16'"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1, got 0"),
    ],
)
def test_impossible_recipes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        tiny_recipe(**change)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: recipe.MomentumKeys(1.5), r"keys.momentum must be in \[0, 1\), got 1.5 \(it is m in"),
        (lambda: recipe.MomentumQueue(0), "dictionary.size must be at least 1 key, got 0"),
        (lambda: recipe.MemoryBank(0), "dictionary.size must be at least 1 key"),
        (lambda: recipe.MemoryBank(momentum=1.0), "dictionary.momentum must be in"),
        (lambda: recipe.InfoNCE(0.0), "loss.temperature must be above 0"),
        (lambda: recipe.NCE(-1.0), "loss.temperature must be above 0"),
        (lambda: recipe.Margin(0.0), "loss.margin must be in"),
        (lambda: recipe.SGD(lr=0.0), "optimizer.lr must be above 0"),
        (lambda: recipe.SGD(momentum=1.0), "optimizer.momentum must be in"),
        (lambda: recipe.SGD(weight_decay=-1.0), "optimizer.weight_decay must not be negative"),
        (lambda: recipe.Encoder(bn_group=1), "encoder.bn_group must be at least 2 images"),
        (lambda: recipe.Encoder(dim=0), "encoder.dim must be at least 1"),
        (lambda: recipe.Encoder(width=0), "encoder.width must be at least 1"),
        (lambda: recipe.Exponential(every=0), "schedule.every must be at least 1"),
        (lambda: recipe.Encoder(head="lineer"), "encoder.head must be one of linear, mlp, got 'lineer'"),
        (lambda: recipe.Encoder(stem="big"), "encoder.stem must be one of imagenet, small, small2"),
        (lambda: recipe.Step(factor=0.0), "schedule.factor must be above 0"),
        (lambda: recipe.Exponential(factor=-1.0), "schedule.factor must be above 0"),
        (lambda: recipe.Monitor(bank=0), "monitor.bank must be at least 1 image"),
        (lambda: recipe.Monitor(queries=0), "monitor.queries must be at least 1 image"),
        (lambda: recipe.Monitor(k=0), "monitor.k must be at least 1"),
        (lambda: recipe.Monitor(temperature=0.0), "monitor.temperature must be above 0"),
        (lambda: recipe.Monitor(every=-1), "monitor.every must not be negative"),
    ],
)
def test_impossible_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no recipe 'v9'; there are demo, cpu"):
        get("v9")
    path = tmp_path / "r.toml"
    for content, message in [
        ({"epoch": 3}, "unknown recipe field epoch; there are name"),
        ({"keys": {"kind": "Nothing"}}, "keys.kind must be one of MomentumKeys, TiedKeys, QueryKeys"),
        ({"keys": {"momentun": 0.9}}, "unknown recipe field keys.momentun"),
        ({"keys": {"momentum": 2.0}}, "keys.momentum must be in"),
        ({"batch": "many"}, "a value of the recipe is of the wrong kind"),
    ]:
        path.write_text(tomli_w.dumps(content))
        with pytest.raises(ValueError, match=message):
            recipe_file.read(path)
    path.write_text("= no toml")
    with pytest.raises(ValueError, match="is not a TOML file"):
        recipe_file.read(path)


def test_a_queue_as_large_as_the_data_needs_masking():
    values = tiny_recipe(dictionary=recipe.MomentumQueue(size=100))
    with pytest.raises(ValueError, match=r"must be below the 100 images unless own keys are masked, got 100"):
        build_dictionary(values, 100)
    assert len(build_dictionary(values, 101).keys) == 100
    masked = tiny_recipe(dictionary=recipe.MomentumQueue(size=5000, mask_own=True))
    assert len(build_dictionary(masked, 100).keys) == 5000


def test_a_mean_of_other_channels_is_refused_and_that_of_photographs_is_measured_anew():
    grey = Data(ArraySource(tiny_data().train.pixels[:, :1]), None)
    values = tiny_recipe(views=dataclasses.replace(SMALL, mean=(0.5, 0.5), std=(0.2, 0.2)))
    with pytest.raises(ValueError, match=r"views.mean has 2 values but array has images of 1 channel"):
        resolve(values, grey, CPU)
    assert len(resolve(tiny_recipe(views=SMALL), grey, CPU).views.mean) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"epochs": 1, "schedule": recipe.Cosine(by_epoch=True, first_epoch=1)},
            "rate of the first step is 0",
        ),
        (
            {"encoder": recipe.Encoder(arch="torchvision/squeezenet1_0", bn_group=4)},
            "no fully connected layer",
        ),
        (
            {"encoder": recipe.Encoder(arch="torchvision/vit_b_16", bn_group=4)},
            "does not take views of 16 pixels",
        ),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_built(change, message):
    with pytest.raises(ValueError, match=message):
        tiny_run(tiny_recipe(**change))


def test_resolving_fills_in_what_the_data_says():
    values = resolve(tiny_recipe(), tiny_data(), CPU)
    assert values.views.mean is not None
    assert len(values.views.mean) == 3
    assert values.precision in ("float32", "bfloat16")
    assert resolve(values, tiny_data(), CPU) == values
    assert isinstance(values, Recipe)
