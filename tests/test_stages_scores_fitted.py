"""Scores that need training rows or the last layer, compared with slow loops and pytorch-ood."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp

from pipeline.errors import ResourceError
from stages.errors import InputError
from stages.scores import factors
from stages.scores.factors import Linear, TrainingRows
from stages.scores.known_scores import OF_WEIGHTS, SCORES
from stages.scores.mahalanobis import fit_ddu, fit_rmds
from stages.scores.nearest import Bank, fit_nnguide
from stages.scores.patterns import fit_fdbd, fit_klm, fit_she
from stages.scores.percentile import percentile
from stages.scores.shaping import fit_dice, fit_react, largest
from stages.scores.subspace import complement, fit_residual, fit_vim
from stages.sensing.torchvision_ops import import_torchvision

N_CLASSES, WIDTH = 4, 10
RNG = np.random.default_rng(3)
CENTRES = np.abs(RNG.normal(size=(N_CLASSES, WIDTH))) * 2
LINEAR = Linear(CENTRES, -(CENTRES**2).sum(axis=1) / 2)  # the nearest centre is predicted


def drawn(n_rows):
    """Features of a ReLU in float32, with their logits and labels, which are mostly predicted."""
    near = RNG.integers(0, N_CLASSES, n_rows)
    f = np.maximum(CENTRES[near] + RNG.normal(size=(n_rows, WIDTH)), 0).astype(np.float32)
    z = LINEAR.logits(f)
    labels = np.where(RNG.random(n_rows) < 0.8, z.argmax(axis=1), near)
    return f, z, labels


TRAIN, TRAIN_Z, LABELS = drawn(300)
F, Z, _ = drawn(25)
TRAINING = TrainingRows.of(TRAIN, TRAIN_Z, LABELS, LINEAR)
FITTED = [name for name, kind in SCORES.items() if kind.fit is not None]
OF_LAYER = [name for name, kind in SCORES.items() if kind.of_layer is not None]


def fitted(name, training=TRAINING):
    return SCORES[name].fitted(lambda: training, lambda: training.linear)


def energies(features, linear=LINEAR):
    return logsumexp(linear.logits(features), axis=1)


@pytest.fixture(autouse=True)
def _several_blocks(monkeypatch):
    monkeypatch.setattr(factors, "BLOCK_ROWS", 64)


def test_rmds_is_the_difference_of_two_distances():
    rows = TRAIN.astype(float)
    mean = rows.mean(axis=0)
    means = np.stack([rows[c == LABELS].mean(axis=0) for c in range(N_CLASSES)])
    own = np.linalg.inv((rows - means[LABELS]).T @ (rows - means[LABELS]) / len(rows))
    background = np.linalg.inv((rows - mean).T @ (rows - mean) / len(rows))
    expected = [
        -min((f - m) @ own @ (f - m) - (f - mean) @ background @ (f - mean) for m in means)
        for f in F
    ]

    assert fit_rmds(TRAINING)(F, Z) == pytest.approx(expected, rel=1e-7)


def test_ddu_is_the_density_of_a_mixture_of_gaussians():
    from scipy.stats import multivariate_normal

    densities = 0
    for c in range(N_CLASSES):
        rows = TRAIN[c == LABELS].astype(float)
        normal = multivariate_normal(rows.mean(axis=0), np.cov(rows.T, bias=True))
        densities = densities + len(rows) / len(TRAIN) * normal.pdf(F)

    assert fit_ddu(TRAINING, ridge=1e-12)(F, Z) == pytest.approx(np.log(densities), rel=1e-6)


def test_residual_and_vim_are_those_of_a_loop():
    u = -np.linalg.pinv(LINEAR.weight) @ LINEAR.bias
    values, vectors = np.linalg.eigh((TRAIN - u).T @ (TRAIN - u))
    rest = vectors[:, np.argsort(values)[: WIDTH - 5]]
    norms = [np.linalg.norm(rest.T @ (f - u)) for f in F]
    alpha = TRAIN_Z.max(axis=1).mean() / np.mean([np.linalg.norm(rest.T @ (f - u)) for f in TRAIN])

    assert fit_residual(TRAINING)(F, Z) == pytest.approx(-np.array(norms), rel=1e-9)
    assert fit_vim(TRAINING)(F, Z) == pytest.approx(energies(F) - alpha * np.array(norms), rel=1e-9)


def test_vim_is_the_energy_if_training_rows_lie_in_the_subspace():
    """The origin is in it: without a bias it is 0."""
    linear = Linear(LINEAR.weight, np.zeros(N_CLASSES))
    flat = TRAIN[:, :2] @ RNG.random((2, WIDTH)).astype(np.float32)
    training = TrainingRows.of(flat, linear.logits(flat), LABELS, linear)

    assert fit_vim(training)(F, Z) == pytest.approx(energies(F), rel=1e-9)


def test_react_clips_at_a_percentile_of_all_features():
    clipped = np.minimum(F, np.percentile(TRAIN, 90))

    assert fit_react(TRAINING)(F, Z) == pytest.approx(energies(clipped), rel=1e-6)


@pytest.mark.parametrize("percent", [0, 13.7, 50, 90, 100])
@pytest.mark.parametrize(
    "values", [[3.0], [0.0, -0.0, 1.0, 1.0], RNG.normal(size=999), np.repeat([1e-42, -7, 1e38], 5)]
)
def test_the_percentile_of_blocks_is_that_of_numpy(values, percent):
    values = np.array(values, np.float32)
    blocks = np.array_split(values, 3)

    found = percentile(lambda: blocks, percent)

    assert found == pytest.approx(np.percentile(values.astype(float), percent), rel=1e-12)


def test_dice_keeps_the_weights_that_contribute_most():
    contributions = LINEAR.weight * TRAIN.mean(axis=0)
    limit = np.percentile(contributions, 90)
    expected = [
        logsumexp(
            [
                sum(LINEAR.weight[c, i] * f[i] for i in range(WIDTH) if contributions[c, i] > limit)
                + LINEAR.bias[c]
                for c in range(N_CLASSES)
            ]
        )
        for f in F
    ]

    assert fit_dice(TRAINING)(F, Z) == pytest.approx(expected, rel=1e-5)


def test_largest_features_are_counted_and_the_first_of_equal_ones_kept():
    found = largest(np.array([[0.0, 0, 5, 0, 0], [1, 2, 3, 4, 5]]), 60)

    assert found.tolist() == [[True, False, True, False, False], [False] * 3 + [True] * 2]
    assert not largest(F, 100).any()


def shaped(f, percent, keep):
    n_kept = WIDTH - round(WIDTH * percent / 100)
    kept = np.argsort(-f, kind="stable")[:n_kept]
    pruned = np.zeros(WIDTH)
    pruned[kept] = f.sum() / n_kept if keep == "ash-b" else f[kept]
    ratio = np.exp(f.sum() / f[kept].sum())
    return {"ash-p": pruned, "ash-b": pruned, "ash-s": pruned * ratio, "scale": f * ratio}[keep]


@pytest.mark.parametrize("name", OF_LAYER)
def test_shaped_features_are_those_of_a_loop(name):
    percent = 85 if name == "scale" else 90
    rows = np.stack([shaped(f.astype(float), percent, name) for f in F])

    assert fitted(name)(F, Z) == pytest.approx(energies(rows), rel=1e-6)


@pytest.mark.parametrize("name", OF_LAYER)
def test_shaped_rows_of_zeros_have_the_energy_of_the_bias(name):
    scores = fitted(name)(np.zeros((2, WIDTH), np.float32), Z[:2])

    assert scores == pytest.approx(np.full(2, logsumexp(LINEAR.bias)))


@pytest.mark.parametrize("name", ["ash-s", "scale"])
def test_negative_features_do_not_make_factors_infinite(name):
    assert np.isfinite(fitted(name)(RNG.normal(size=(50, WIDTH)), RNG.normal(size=(50, 4)))).all()


def test_she_compares_with_correctly_classified_rows():
    right = TRAIN_Z.argmax(axis=1) == LABELS
    patterns = [TRAIN[right & (c == LABELS)].mean(axis=0) for c in range(N_CLASSES)]
    expected = [f @ patterns[c] for f, c in zip(F, Z.argmax(axis=1), strict=True)]

    assert fit_she(TRAINING)(F, Z) == pytest.approx(expected, rel=1e-5)


def test_fdbd_is_the_mean_distance_to_boundaries():
    expected = []
    for f, z in zip(F.astype(float), Z, strict=True):
        own = z.argmax()
        distances = [
            abs(z[own] - z[c]) / np.linalg.norm(LINEAR.weight[own] - LINEAR.weight[c])
            for c in range(N_CLASSES)
            if c != own
        ]
        expected.append(np.mean(distances) / np.linalg.norm(f - TRAIN.mean(axis=0)))

    assert fit_fdbd(TRAINING)(F, Z) == pytest.approx(expected, rel=1e-5)


def test_fdbd_leaves_out_classes_with_equal_weights():
    same = Linear(np.ones((2, WIDTH)), np.array([0.0, 1.0]))
    training = TrainingRows.of(TRAIN, same.logits(TRAIN), LABELS, same)

    assert (fit_fdbd(training)(F, same.logits(F)) == 0).all()


def test_nnguide_is_the_energy_guided_by_the_nearest():
    unit = TRAIN / np.linalg.norm(TRAIN, axis=1, keepdims=True)
    bank = unit * energies(TRAIN)[:, np.newaxis]
    expected = []
    for f, energy in zip(F, energies(F), strict=True):
        products = sorted((bank @ (f / np.linalg.norm(f))).tolist())
        expected.append(energy * np.mean(products[-7:]))

    assert fit_nnguide(TRAINING, k=7)(F, Z) == pytest.approx(expected, rel=1e-5)


def test_klm_is_the_divergence_from_the_nearest_mean_prediction():
    p, q = np.exp(log_softmax(TRAIN_Z, axis=1)), np.exp(log_softmax(Z, axis=1))
    predicted = TRAIN_Z.argmax(axis=1)
    means = [p[predicted == c].mean(axis=0) for c in range(N_CLASSES)]
    expected = [-min((row * np.log(row / mean)).sum() for mean in means) for row in q]

    assert fit_klm(TRAINING)(F, Z) == pytest.approx(expected, rel=1e-9)


def test_neighbours_closer_than_rounding_are_told_apart():
    """The rows differ by less than float32 can represent; the order is that of float64."""
    base = RNG.random(WIDTH)
    rows = base + 1e-5 * RNG.normal(size=(200, WIDTH))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    queries = base + 1e-5 * RNG.normal(size=(5, WIDTH))
    expected = [np.sort(np.linalg.norm(unit - q / np.linalg.norm(q), axis=1))[29] for q in queries]

    assert Bank.of(rows).distance(queries, 30) == pytest.approx(expected, rel=1e-5, abs=1e-15)


def test_rows_that_rounding_orders_otherwise_are_ordered_exactly():
    """Many rows have products with the query that differ by about one unit of float32."""
    base = RNG.random(WIDTH)
    rows = np.concatenate(
        [base + 3e-4 * RNG.normal(size=(40, WIDTH)), RNG.random((3000, WIDTH))]
    ).astype(np.float32)
    queries = (base + 3e-4 * RNG.normal(size=(7, WIDTH))).astype(np.float32)
    unit, wanted = (
        each / np.linalg.norm(each.astype(float), axis=1, keepdims=True) for each in (rows, queries)
    )
    distances = np.sort(np.linalg.norm(unit - wanted[:, np.newaxis], axis=2), axis=1)

    for k in (1, 7, 39, 41, 60):
        assert Bank.of(rows).distance(queries, k) == pytest.approx(distances[:, k - 1], rel=1e-9)


@pytest.mark.parametrize("name", [name for name, kind in SCORES.items() if not kind.reads_logits])
def test_scores_that_read_no_logits_are_those_of_any_logits(name):
    other = TrainingRows.of(TRAIN, 2 * TRAIN_Z[::-1], LABELS, Linear(-2 * CENTRES, LINEAR.bias))

    assert fitted(name, other)(F, Z[::-1]) == pytest.approx(fitted(name)(F, Z), rel=1e-9)


def test_neighbours_that_do_not_fit_into_memory_are_refused():
    many = replace(TRAINING, n_rows=10**15)

    with pytest.raises(ResourceError, match=r"knn: 1,000,.* rows of 10 features take .* are free"):
        fitted("knn", many)


def test_a_row_of_zeros_is_as_far_as_an_orthogonal_one():
    rows = np.concatenate([np.zeros((1, WIDTH)), np.eye(WIDTH)])

    assert Bank.of(rows).distance(np.zeros((1, WIDTH)), 11) == pytest.approx([2**0.5])
    assert Bank.of(rows).distance(np.eye(WIDTH)[:1], 1) == pytest.approx([0.0])
    assert Bank.of(rows).distance(np.eye(WIDTH)[:1], 11) == pytest.approx([2**0.5])


def peers():
    """Detectors of pytorch-ood on the same factors: high means out-of-distribution."""
    import_torchvision()
    from pytorch_ood import detector as peer

    w, b = (torch.from_numpy(each).float() for each in LINEAR)
    layer = torch.nn.Linear(WIDTH, N_CLASSES)
    layer.weight.data, layer.bias.data = w, b
    f, y = torch.from_numpy(TRAIN), torch.from_numpy(LABELS)
    z = torch.from_numpy(TRAIN_Z)
    return {
        "vim": peer.ViM(None, 5, w, b).fit_features(f, y),
        "dice": peer.DICE(None, w, b, 0.9).fit_features(f, y),
        "she": peer.SHE(None, layer).fit_features(f, y),
        "fdbd": peer.fDBD(torch.nn.Identity(), layer).fit_features(f),
        "nnguide": peer.NNGuide(torch.nn.Identity(), layer, k=100).fit_features(f, y),
        "rmds": peer.RMD(None).fit_features(f.double(), y),
        "ddu": peer.GMM(None, reg=1e-6).fit_features(f, y),
        "gen": peer.GEN(None, M=100),
        "klm": peer.KLMatching(None).fit_logits(z),
        "react": peer.ReAct(None, layer).fit_feature_maps(f, y),
        "ash-p": peer.ASH(None, layer_of(layer), "ash-p", 0.9),
        "ash-b": peer.ASH(None, layer_of(layer), "ash-b", 0.9),
        "ash-s": peer.ASH(None, layer_of(layer), "ash-s", 0.9),
        "scale": peer.SCALE(None, layer_of(layer), 0.85),
    }


def layer_of(layer):
    return lambda maps: layer(maps.flatten(1))


def test_scores_are_those_of_pytorch_ood():
    logits = Z / 8  # probabilities that pytorch-ood does not clamp
    f, z = torch.from_numpy(F), torch.from_numpy(logits)
    factor = {"gen": N_CLASSES, "rmds": len(TRAIN)}  # a mean for a sum, sums for covariances
    for name, peer in peers().items():
        with torch.no_grad():
            if name in ("gen", "klm"):
                theirs = peer.predict_logits(z)
            elif name in ("ash-p", "ash-b", "ash-s", "scale"):
                theirs = peer.predict_feature_maps(f[:, :, None, None])
            elif name == "react":
                theirs = peer.predict_feature_maps(f)
            else:
                theirs = peer.predict_features(f)
        expected = -factor.get(name, 1) * theirs.double().numpy()
        rel = 0.03 if name == "rmds" else 2e-3  # pytorch-ood regularises its covariances

        own = logits if name in ("gen", "klm") else Z
        assert fitted(name)(F, own) == pytest.approx(expected, rel=rel, abs=2e-3), name


@pytest.mark.parametrize("name", FITTED + OF_LAYER)
def test_scores_read_weights_if_they_are_listed_so(name):
    loads = []
    rows = replace(TRAINING, load_linear=lambda: loads.append(name) or LINEAR)
    SCORES[name].fitted(lambda: rows, rows.load_linear)(F, Z)
    assert bool(loads) == (name in OF_WEIGHTS)


@pytest.mark.parametrize("name", FITTED + OF_LAYER)
def test_rows_of_nan_do_not_count_and_score_nan(name):
    broken_f, broken_z = TRAIN.copy(), TRAIN_Z.copy()
    broken_f[::9], broken_z[::9] = np.nan, np.nan
    kept = np.arange(len(TRAIN)) % 9 != 0
    with_broken = fitted(name, TrainingRows.of(broken_f, broken_z, LABELS, LINEAR))
    without = fitted(name, TrainingRows.of(TRAIN[kept], TRAIN_Z[kept], LABELS[kept], LINEAR))
    f, z = F.copy(), Z.copy()
    f[3], z[3] = np.nan, np.nan
    scores = with_broken(f, z)

    assert np.isnan(scores[3])
    assert np.delete(scores, 3) == pytest.approx(np.delete(without(F, Z), 3), rel=1e-7)


@pytest.mark.parametrize("n_classes", [1, 2])
@pytest.mark.parametrize("name", FITTED + OF_LAYER)
def test_few_classes_of_which_one_has_no_rows_and_constant_features(name, n_classes):
    linear = Linear(LINEAR.weight[:n_classes], LINEAR.bias[:n_classes])
    dead = TRAIN.copy()
    dead[:, 4] = 0
    z = linear.logits(dead)
    z[:, 0] += 100  # the other class, if any, is never predicted
    training = TrainingRows.of(dead, z, np.zeros(len(dead), int), linear)

    scores = fitted(name, training)(F, linear.logits(F))

    assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", [name for name in FITTED if name != "she"])
def test_without_training_rows_a_score_is_refused(name):
    nothing = TrainingRows.of(np.full((3, WIDTH), np.nan), TRAIN_Z[:3], LABELS[:3], LINEAR)

    with pytest.raises(InputError, match=f"{name}: expected"):
        fitted(name, nothing)


@pytest.mark.parametrize("name", ["mahalanobis", "rmds", "ddu", "she"])
def test_scores_of_classes_need_labels(name):
    unlabelled = TrainingRows.of(TRAIN, TRAIN_Z, np.full(len(TRAIN), -1), LINEAR)

    with pytest.raises(InputError, match=f"{name}: expected"):
        fitted(name, unlabelled)


@pytest.mark.parametrize("name", ["residual", "vim", "nnguide", "react", "dice", "fdbd", "klm"])
def test_other_scores_do_not(name):
    unlabelled = TrainingRows.of(TRAIN, TRAIN_Z, np.full(len(TRAIN), -1), LINEAR)

    assert fitted(name, unlabelled)(F, Z) == pytest.approx(fitted(name)(F, Z), rel=1e-12)


def test_the_subspace_may_have_any_dimension():
    assert complement("vim", TRAINING, 0).basis.shape == (WIDTH, WIDTH)
    assert fit_vim(TRAINING, n_kept=WIDTH)(F, Z) == pytest.approx(energies(F), rel=1e-9)
