"""Recipes by name: functions that return values, and say what they are for and what they give."""

from collections.abc import Callable

from moco.recipe import Recipe
from moco.recipes.imagenet import instagram, photos, v1, v2, v3, v3_vit
from moco.recipes.small import cifar, cifar_fast, cifar_symmetric, cpu, demo

RECIPES: dict[str, Callable[[], Recipe]] = {
    "demo": demo,
    "cpu": cpu,
    "photos": photos,
    "cifar": cifar,
    "cifar-symmetric": cifar_symmetric,
    "cifar-fast": cifar_fast,
    "v1": v1,
    "v2": v2,
    "v3": v3,
    "v3-vit": v3_vit,
    "instagram": instagram,
}


def get(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ValueError: if there is none.
    """
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]()
