import dataclasses
import math

import pytest

from moco import recipe
from moco.build import build_interpreter
from moco.descent import learning_rate
from moco.recipes import RECIPES
from moco.training import schedule
from tiny import tiny_recipe


def test_step_decay_is_the_papers():
    factors = [schedule.step_decay(epoch, (120, 160), 0.1) for epoch in (0, 119, 120, 159, 160, 199)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_cosine_goes_from_one_to_zero_by_a_half():
    assert [schedule.cosine(p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])


def test_exponential_is_instagrams():
    assert schedule.exponential(62_499, 62_500, 0.9) == 1
    assert schedule.exponential(1_249_999, 62_500, 0.9) == pytest.approx(0.9**19)


def test_warm_up_ends_at_one():
    assert [schedule.warm_up(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert schedule.warm_up(0, 0) == 1


def test_lr_scales_with_the_global_batch():
    assert schedule.linear_scaling(0.03, 1024) == pytest.approx(0.12)


def rates(values, per_epoch, steps):
    rate = learning_rate(values, steps, per_epoch)
    return [rate(epoch * per_epoch) for epoch in range(steps // per_epoch)]


def test_recipes_have_the_papers_rates():
    v1 = rates(RECIPES["v1"](), 5004, 200 * 5004)
    assert (v1[0], v1[120], v1[160]) == pytest.approx((0.03, 0.003, 0.0003))
    v2 = rates(RECIPES["v2"](), 5004, 200 * 5004)
    assert v2[50] == pytest.approx(0.03 * 0.5 * (1 + math.cos(math.pi * 50 / 200)))
    instagram = learning_rate(RECIPES["instagram"](), 1_250_000, 917_968)
    assert instagram(0) == pytest.approx(0.12)
    cifar = rates(RECIPES["cifar"](), 97, 200 * 97)
    assert cifar == pytest.approx([0.06 * 0.5 * (1 + math.cos(math.pi * e / 200)) for e in range(1, 201)])


@pytest.mark.parametrize(
    "kind",
    [recipe.Step(), recipe.Cosine(), recipe.Cosine(by_epoch=True), recipe.Exponential(), recipe.Constant()],
)
def test_every_schedule_is_a_function_of_the_step_and_warms_up(kind):
    rate = learning_rate(tiny_recipe(schedule=dataclasses.replace(kind, warmup=1)), 60, 6)
    assert [rate(s) for s in (7, 3, 7)][::2] == [rate(7)] * 2
    assert rate(0) == pytest.approx(rate(5) / 6, rel=0.05)


def introduced(values, steps_per_epoch=5004):
    return " ".join(build_interpreter(values, steps_per_epoch).introduction())


def test_a_run_that_ends_before_its_queue_is_filled_says_so():
    cpu = dataclasses.replace(RECIPES["cpu"](), epochs=1)  # 4,096 keys in batches of 256
    assert "before the queue is filled" not in introduced(cpu, 16)
    assert "the run ends at step 15, before the queue is filled" in introduced(cpu, 15)
    counted = dataclasses.replace(cpu, epochs=None, iterations=3)
    assert "the run ends at step 3" in introduced(counted, 100)


def test_a_run_that_ends_before_a_milestone_says_so():
    v1 = RECIPES["v1"]()
    assert "milestone" not in introduced(v1)
    said = introduced(dataclasses.replace(v1, epochs=100))
    assert "the learning rate never drops at epoch 120 and 160: the run ends after 100" in said
    assert "--schedule.milestones 60 80" in said
    assert "at epoch 160:" in introduced(dataclasses.replace(v1, epochs=160))
    counted = dataclasses.replace(v1, epochs=None, iterations=130 * 5004)
    assert "at epoch 160: the run ends after 130" in introduced(counted)
    assert "milestone" not in introduced(dataclasses.replace(RECIPES["v2"](), epochs=100))
