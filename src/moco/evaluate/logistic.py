"""Multinomial logistic regression on features, by L-BFGS, many problems at once.

Few-label curves ask for the same small problem hundreds of times: other labelled images, other
folds, other penalties. Problems that are stacked share their matrix products.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4)
_FOLDS = 5
_MANY = 1000  # labelled images of which one fold tells enough
_ROUGH = 60  # iterations that tell penalties apart


def logistic_regression(
    features: Float[Tensor, "S M D"],
    labels: Int[Tensor, "S M"],
    classes: int,
    penalty: Float[Tensor, "S K"],
    *,
    shares: Float[Tensor, "S K M"] | None = None,
    iterations: int = 200,
) -> Float[Tensor, "S K classes D_and_1"]:
    """The minimum of mean cross entropy + penalty / 2 × |W|² of K problems on each of S sets of images.

    Args:
        features: of M images per set; `standardise` them first.
        labels: their classes, from 0.
        classes: how many there are.
        penalty: weight of the squared norm, above 0; the bias is not penalised.
        shares: weight of each image in a problem's mean; 0 leaves it out. None weighs all equally.
        iterations: of L-BFGS, at most.

    Returns:
        Weights and, in the last column, bias. `scores` applies them.

    Raises:
        ValueError: if a penalty is not above 0 or the features are not finite.

    One problem with penalty λ is scikit-learn's with C = 1 / (λ M).
    """
    if not bool((penalty > 0).all()):
        raise ValueError(f"the penalty must be above 0, got {penalty.min().item()}")
    check_finite(features)
    sets, images, dim = features.shape
    problems = penalty.shape[1]
    shares = features.new_ones(sets, problems, images) if shares is None else shares
    shares = (shares / shares.sum(2, keepdim=True)).transpose(1, 2).reshape(-1)
    answers = labels[:, :, None].expand(-1, -1, problems).reshape(-1)
    weights = features.new_zeros(sets, problems, classes, dim + 1, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weights],
        max_iter=iterations,
        max_eval=2 * iterations,
        history_size=10,
        tolerance_grad=1e-5 / images**0.5,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        solver.zero_grad()
        logits = scores(weights, features)
        losses = F.cross_entropy(logits.view(-1, classes), answers, reduction="none")
        norms = weights[..., :-1].square().sum((2, 3))
        value = (losses * shares).sum() + (penalty * norms).sum() / 2
        value.backward()
        return value

    solver.step(objective)
    return weights.detach()


def scores(
    weights: Float[Tensor, "S K C D_and_1"], features: Float[Tensor, "S M D"]
) -> Float[Tensor, "S M K C"]:
    """Logits of features under the classifiers of their set, all in one matrix product."""
    sets, problems, classes, _ = weights.shape
    flat = weights.reshape(sets, problems * classes, -1)
    logits = torch.baddbmm(flat[:, None, :, -1], features, flat[..., :-1].transpose(1, 2))
    return logits.view(sets, -1, problems, classes)


def standardise(
    features: Float[Tensor, "M D"], *others: Float[Tensor, "_ D"]
) -> tuple[Float[Tensor, "_ D"], ...]:
    """Features, and others with them, centred and scaled so that their mean squared length is D.

    One scale serves all dimensions: dividing each by its own deviation would make noise of those
    that hardly vary as loud as the rest.
    """
    centre, scale = centre_and_scale(features)
    return tuple((f - centre) / scale for f in (features, *others))


def centre_and_scale(features: Float[Tensor, "M D"]) -> tuple[Float[Tensor, " D"], Float[Tensor, ""]]:
    """What `standardise` takes away and divides by."""
    centre = features.mean(0)
    return centre, (features - centre).square().mean().sqrt().clamp(min=1e-12)


def fit_predict(
    features: Float[Tensor, "S M D"],
    labels: Int[Tensor, "S M"],
    classes: int,
    queries: Float[Tensor, "Q D"],
    *,
    groups: Int[Tensor, "S M"] | None = None,
    penalties: tuple[float, ...] = PENALTIES,
) -> Int[Tensor, "S Q"]:
    """Classes of queries by S logistic regressions, each with the penalty that suits its own images best.

    The penalty is chosen by cross-validation on the labelled images alone, the queries stay unseen. Where
    a class has one image, or one group, there is nothing to validate on, and the middle of the penalties
    is taken.

    Args:
        features: labelled images of S problems.
        labels: their classes.
        classes: how many there are.
        queries: features to classify, the same for all problems.
        groups: of the labelled images, such as patients: none is on both sides of the validation.
        penalties: to choose from.

    Raises:
        ValueError: if features of labelled images or queries are not finite.
    """
    check_finite(queries)
    standard = [standardise(f, queries) for f in features]
    features = torch.stack([train for train, _ in standard])
    folds = stratified_folds(labels, classes, groups)
    choice = torch.full((len(features),), len(penalties) // 2)
    if bool((checked := folds.amax(1) > 0).any()):
        choice[checked] = _validate(features[checked], labels[checked], classes, penalties, folds[checked])
    penalty = torch.tensor(penalties, dtype=features.dtype)[choice]
    weights = logistic_regression(features, labels, classes, penalty[:, None])
    pairs = zip(weights, standard, strict=True)
    return torch.stack([scores(w[None], q[None])[0, :, 0].argmax(1) for w, (_, q) in pairs])


def _validate(features, labels, classes, penalties, folds) -> Tensor:
    """(S,) the index of each set's best penalty, the largest where several are equal."""
    count = 1 if labels.shape[1] > _MANY else int(folds.max()) + 1
    held = folds[:, None] == torch.arange(count)[:, None]  # (S, folds, M)
    kept = (~held).to(features.dtype).repeat_interleave(len(penalties), 1)
    penalty = torch.tensor(penalties, dtype=features.dtype).repeat(len(features), count)
    weights = logistic_regression(features, labels, classes, penalty, shares=kept, iterations=_ROUGH)
    right = scores(weights, features).argmax(3) == labels[..., None]
    right = right.view(*labels.shape, count, len(penalties)) & held.transpose(1, 2)[..., None]
    return right.sum((1, 2)).argmax(1)


def stratified_folds(
    labels: Int[Tensor, "S M"], classes: int, groups: Int[Tensor, "S M"] | None = None
) -> Int[Tensor, "S M"]:
    """Deal each problem's images of each class to at most five folds in turn, or, of images in groups, whole
    groups; one fold where some class has only one image, or one group, in a problem."""
    if groups is not None and any(len(names.unique()) < len(names) for names in groups):
        return _folds_of_groups(labels, classes, groups)
    one_hot = F.one_hot(labels, classes)
    counts = one_hot.sum(1)
    fewest = counts.where(counts > 0, counts.max()).amin(1, keepdim=True)
    turn = (one_hot.cumsum(1) * one_hot).sum(2) - 1
    return torch.where(fewest < 2, 0, turn % fewest.clamp(1, _FOLDS))


def _folds_of_groups(labels: Tensor, classes: int, groups: Tensor) -> Tensor:
    return torch.stack([_dealt(*problem, classes) for problem in zip(labels, groups, strict=True)])


def _dealt(labels: Int[Tensor, " M"], groups: Int[Tensor, " M"], classes: int) -> Int[Tensor, " M"]:
    """Each group, the largest first, to the fold that has least of its classes; many groups in turn.

    There are as many folds as the class in fewest groups has; more where a class would be in one alone.
    """
    found, number = groups.unique(return_inverse=True)
    pairs = torch.stack([number, labels]).unique(dim=1)
    spans = torch.bincount(pairs[1], minlength=classes)  # groups that a class is in
    fewest = int(spans[spans > 0].min())
    for count in range(min(_FOLDS, fewest), min(_FOLDS, len(found)) + 1) if fewest > 1 else ():
        place = torch.arange(len(found)) % count
        if len(found) <= _MANY:
            table = torch.zeros(len(found), classes)
            table.index_put_((number, labels), torch.ones(()), accumulate=True)
            share = table / table.sum(0).clamp(min=1)
            filled = torch.zeros(count, classes)
            for group in share.sum(1).argsort(descending=True, stable=True).tolist():
                place[group] = (filled * share[group]).sum(1).argmin()
                filled[place[group]] += share[group]
        folds = place[number]
        held = torch.stack([folds, labels]).unique(dim=1)
        if bool((torch.bincount(held[1], minlength=classes)[spans > 0] > 1).all()):
            return folds
    return torch.zeros_like(labels)


def check_finite(features: Tensor) -> None:
    """Raise ValueError if features hold NaN or infinity."""
    if not bool(features.isfinite().all()):
        raise ValueError("the features are not finite; the checkpoint is broken or training diverged")
