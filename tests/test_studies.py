"""Studies as values: which recipes they name, and that the published numbers are the papers'."""

from dataclasses import replace

import pytest

from moco.recipe import NCE, InBatch, MemoryBank, MomentumQueue, QueryKeys, TiedKeys
from moco.recipes import RECIPES
from moco.studies import BASES, STUDIES, Axis, Cell, Study
from moco.studies import published as papers
from moco.studies.variants import of_length


def points(published, series=None):
    return {p.x: p.value for p in published.points if series in (None, p.series)}


REFUSED = {
    ("mechanisms", "cifar-symmetric"): "symmetric must be off with a memory bank",
    ("v2", "instagram"): "needs a base recipe with epochs",
    ("symmetric", "instagram"): "needs a base with epochs and symmetric off",
    ("symmetric", "cifar-symmetric"): "needs a base with epochs and symmetric off",
    ("mechanisms", "cifar-fast"): "symmetric must be off with a memory bank",
    ("symmetric", "cifar-fast"): "needs a base with epochs and symmetric off",
    ("architectures", "v3-vit"): "varies the width of ResNets of ours, v3-vit has timm/vit_small",
}
for base in "v3", "v3-vit":
    REFUSED["symmetric", base] = "needs a base with epochs and symmetric off"
    for study in "mechanisms", "momentum", "shuffle-bn", "v3":
        REFUSED[study, base] = f"needs a base recipe with momentum keys and a queue, {base} has"


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_of_any_base_is_made_of_valid_recipes_or_refused_in_a_sentence(name, base):
    if (name, base) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name, base]):
            STUDIES[name](BASES[base]())
        return
    study = STUDIES[name](BASES[base]())
    assert study.name == name
    recipes = list(study.recipes().values())
    assert all(a != b for i, a in enumerate(recipes) for b in recipes[:i])
    assert study.reference in study.recipes()


def test_mechanisms_differ_in_keys_and_dictionary_only():
    study = STUDIES["mechanisms"](RECIPES["v1"]())
    base, recipes = RECIPES["v1"](), study.recipes()
    assert {cell.x for cell in study.cells if cell.series == "momentum queue"} == {
        *(256, 512, 1024, 4096, 16384, 65536)
    }
    assert {cell.x for cell in study.cells if cell.series == "end-to-end"} == {256, 512, 1024}
    for name, recipe in recipes.items():
        same = replace(recipe, keys=base.keys, dictionary=base.dictionary, loss=base.loss, batch=base.batch)
        assert same == base, name
    assert recipes["queue-4096"].dictionary == MomentumQueue(4096)
    tied = recipes["end-to-end-1024"]
    assert (tied.keys, tied.dictionary, tied.batch) == (TiedKeys(), InBatch(), 1024)
    bank = recipes["bank-4096"]
    assert (bank.keys, bank.dictionary) == (QueryKeys(), MemoryBank(4096))
    assert recipes["bank-nce-4096"] == replace(bank, loss=NCE(0.07))


def test_the_rate_of_the_unscaled_batches_is_that_of_the_base():
    base = RECIPES["v1"]()
    study = STUDIES["batch"](base)
    for cell in study.cells:
        effective = cell.recipe.optimizer.lr * cell.recipe.batch / 256
        assert effective == pytest.approx(0.03 if cell.series == "lr not scaled" else 0.03 * cell.x / 256)


def test_longer_cells_keep_the_shape_of_the_schedule():
    longer = STUDIES["symmetric"](RECIPES["v1"]()).recipes()["longer"]
    assert longer.epochs == 400
    assert longer.schedule.milestones == (240, 320)
    v2 = STUDIES["v2"](RECIPES["v1"]()).recipes()
    assert (v2["v1"].schedule.milestones, v2["e-longer"].epochs) == ((120, 160), 800)
    assert v2["v1"] == RECIPES["v1"]()
    assert v2["d-mlp-aug-cos"].views == RECIPES["v2"]().views
    assert v2["d-mlp-aug-cos"].encoder == RECIPES["v2"]().encoder


def test_a_base_of_another_length_keeps_the_shape_of_its_schedule():
    shorter = of_length(RECIPES["v1"](), 50)
    assert (shorter.epochs, shorter.schedule.milestones) == (50, (30, 40))
    assert of_length(RECIPES["v1"](), 200) == RECIPES["v1"]()
    assert of_length(RECIPES["v1"](), 1).schedule.milestones == (1, 1)
    assert of_length(BASES["cores"](), 9) == replace(BASES["cores"](), epochs=9)
    counted = of_length(RECIPES["instagram"](), 3)
    assert (counted.epochs, counted.iterations) == (3, None)


def test_the_cosine_of_v2_is_the_recipe_s():
    cell = STUDIES["v2"](RECIPES["v1"]()).recipes()["d-mlp-aug-cos"]
    assert replace(cell, name="v2") == RECIPES["v2"]()
    own = BASES["cores"]().schedule
    assert STUDIES["v2"](BASES["cores"]()).recipes()["d-mlp-aug-cos"].schedule == own


def test_a_batch_whose_rate_cannot_be_scaled_back_exactly_is_one_cell():
    base = BASES["cores"]()
    base = replace(
        base,
        batch=18,
        encoder=replace(base.encoder, bn_group=None),
        keys=replace(base.keys, shuffle=False),
        optimizer=replace(base.optimizer, lr=0.06),
    )
    assert 0.06 * 18 / 18 != 0.06
    assert list(STUDIES["batch"](base).recipes())[:1] == ["scaled-18"]


def test_small_views_are_not_blurred():
    recipes = STUDIES["v2"](RECIPES["cifar"]()).recipes()
    assert all(recipe.views.blur_probability == 0 for recipe in recipes.values())


def test_the_cells_of_v3_differ_in_one_part_each():
    base = RECIPES["v2"]()
    cells = STUDIES["v3"](base, (512,)).recipes()
    whole = cells["v3"]
    assert (whole.encoder.hidden, whole.encoder.bn_group, whole.symmetric) == (512, None, True)
    assert whole.optimizer == replace(base.optimizer, lr=0.06, weight_decay=5e-5)
    for name, part in {
        "v3-queue": "dictionary", "no-predictor": "encoder", "plain-heads": "encoder", "m-stays": "keys",
    }.items():  # fmt: skip
        assert replace(cells[name], **{part: getattr(whole, part)}) == whole, name
    assert cells["queue"] == replace(base, symmetric=True, optimizer=whole.optimizer)
    assert points(papers.V3) == {"v3": 76.5, "no predictor": 75.5, "heads without BN": 74.4}
    temperature = STUDIES["temperature"](RECIPES["v3"](), (0.5,)).recipes()["mlp-0.5"]
    assert (temperature.loss.temperature, temperature.loss.weight) == (0.5, 4.0)


def test_the_symmetric_cell_is_the_demo_s():
    study = STUDIES["symmetric"](RECIPES["cifar"]())
    assert replace(study.recipes()["symmetric"], name="cifar-symmetric") == RECIPES["cifar-symmetric"]()


def test_published_numbers_say_what_the_papers_say():
    queue, bank, tied = (
        points(papers.MECHANISMS, s) for s in ("momentum queue", "memory bank", "end-to-end")
    )
    assert max(queue) == max(bank) == 65536
    assert round(queue[65536] - bank[65536], 1) == 2.6  # Section 4.1
    assert max(tied) == 1024
    assert points(papers.MOMENTUM) == {"0": None, "0.9": 55.2, "0.99": 57.8, "0.999": 59.0, "0.9999": 58.9}
    mlp = points(papers.TEMPERATURE, "MLP head")
    assert max(mlp, key=mlp.get) == 0.2
    moco = points(papers.ARCHITECTURES, "MoCo")
    assert moco == {24: 60.6, 46: 63.9, 94: 65.4, 375: 68.6}
    assert papers.SYMMETRIC.images == 50_000


@pytest.mark.parametrize("name", STUDIES)
def test_the_cells_of_the_paper_s_base_stand_where_its_points_do(name):
    """Words and sizes match, so that both can be drawn on one axis."""
    study = STUDIES[name](RECIPES["cifar" if name == "symmetric" else "v1"]())
    if name in ("architectures", "shuffle-bn"):  # parameters, epochs
        return
    ours = {cell.x for cell in study.cells}
    for published in study.published:
        assert {point.x for point in published.points} <= ours


def test_a_study_that_makes_no_sense_is_refused():
    base = RECIPES["cpu"]()
    cell = Cell("a", base, "a")
    with pytest.raises(ValueError, match="a cell's name must be lower-case letters"):
        Cell("A b", base, "a")
    with pytest.raises(ValueError, match="study s has no cell"):
        Study("s", "?", (), Axis("x"))
    with pytest.raises(ValueError, match="two cells of study s are named a and differ"):
        Study("s", "?", (cell, Cell("a", replace(base, batch=128), "b")), Axis("x"))
    with pytest.raises(ValueError, match="the reference of study s must be one of its cells, got 'b'"):
        Study("s", "?", (cell,), Axis("x"), reference="b")
    bank = replace(base, keys=QueryKeys(), dictionary=MemoryBank(64))
    with pytest.raises(ValueError, match="needs a base recipe with momentum keys and a queue, cpu has"):
        STUDIES["momentum"](bank)
    with pytest.raises(ValueError, match="needs a base recipe with InfoNCE"):
        STUDIES["temperature"](replace(base, loss=NCE()))
