import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load

from stages.errors import InputError, StageError
from stages.introspection.best_epoch import Selection
from stages.introspection.head import Head, load_head, predict_probabilities
from stages.introspection.head_params import HeadParams
from stages.introspection.head_spec import HeadSpec
from stages.introspection.head_training import HeadState, HeadTraining
from stages.introspection.reading import READS


def a_problem(n: int = 600, n_classes: int = 4, feature_dim: int = 8):
    """Features and logits of a linear network, with the labels it mostly gets right."""
    rng = np.random.default_rng(0)
    features = np.abs(rng.normal(size=(n, feature_dim))).astype(np.float32)
    weight = rng.normal(size=(n_classes, feature_dim)).astype(np.float32)
    logits = 2 * (features - features.mean(axis=0)) @ weight.T
    return features, logits, (logits + rng.normal(size=logits.shape) * 0.1).argmax(axis=1)


FEATURES, LOGITS, LABELS = a_problem()
SPEC = HeadSpec(4, 8, layers=(16,))
STAGE = HeadTraining(FEATURES, LOGITS, LABELS, SPEC, HeadParams(epochs=6, weight_decay=0.0))


def ignore(n_rows: int) -> None:
    """Progress that is not displayed."""


def run(stage: HeadTraining, state: HeadState, units: range) -> list[dict[str, float]]:
    return [stage.step(state, unit, ignore) for unit in units]


def test_training_learns() -> None:
    state = STAGE.start()
    metrics = run(STAGE, state, range(6))
    _, facts = STAGE.finish(state)
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert facts["train_accuracy"][0] > 0.55


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("rank", [None, 5])
def test_resumed_run_equals_an_uninterrupted_one_to_the_bit(
    precision: str, rank: int | None
) -> None:
    params = replace(STAGE.params, seeds=(0, 4), precision=precision)
    stage = replace(STAGE, spec=replace(SPEC, dropout=0.2, rank=rank), params=params)
    straight = stage.start()
    run(stage, straight, range(5))
    first = stage.start()
    run(stage, first, range(2))
    resumed = stage.load(stage.save(first))
    torch.manual_seed(123)  # whatever happened between the two runs
    run(stage, resumed, range(2, 5))
    assert stage.save(resumed) == stage.save(straight)


def test_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    other = replace(STAGE, params=replace(STAGE.params, seeds=(1,)))
    saved = []
    for stage in (STAGE, STAGE, other):
        state = stage.start()
        run(stage, state, range(1))
        saved.append(stage.save(state))
    assert saved[0] == saved[1]
    assert saved[0] != saved[2]


def test_training_leaves_torchs_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(STAGE, STAGE.start(), range(1))
    assert torch.equal(torch.rand(3), expected)


def spec_of(reads: str, layers: tuple[int, ...], rank: int | None = None) -> HeadSpec:
    return HeadSpec(4, 8, layers, reads, M=1.0 if reads == "reflection" else None, rank=rank)


@pytest.mark.parametrize("layers", [(), (16,), (12, 9, 7)])
@pytest.mark.parametrize(
    ("reads", "rank", "longest"),
    [*((reads, None, 64) for reads in READS), (*READS[:1], 5, 64), (*READS[:1], None, 31)],
)
def test_an_epoch_is_plain_sgd_over_each_seeds_rows_in_its_order(
    monkeypatch: pytest.MonkeyPatch, reads: str, rank: int | None, longest: int, layers
) -> None:
    monkeypatch.setattr("stages.introspection.head_spec.LONGEST_WRITTEN_OUT", longest)
    params = HeadParams(epochs=1, weight_decay=1e-3, batch_rows=100, milestones=(), seeds=(0, 1, 5))
    stage = replace(STAGE, spec=spec_of(reads, layers, rank), params=params)
    state = stage.start()
    stage.step(state, 0, ignore)
    for index, seed in enumerate(params.seeds):
        torch.manual_seed(seed)
        head = Head(stage.full_spec)
        optimizer = torch.optim.SGD(head.parameters(), 0.1, 0.9, weight_decay=1e-3, foreach=False)
        for rows in np.split(np.random.default_rng([seed, 0]).permutation(600), 6):
            f, z = torch.from_numpy(FEATURES[rows]), torch.from_numpy(LOGITS[rows])
            optimizer.zero_grad()
            torch.nn.CrossEntropyLoss()(head(f, z), torch.from_numpy(LABELS[rows])).backward()
            optimizer.step()
        for ours, linear in zip(state.heads.weights, head.linears, strict=True):
            torch.testing.assert_close(ours[index], linear.weight.detach(), rtol=1e-4, atol=1e-6)
        for ours, linear in zip(state.heads.biases, head.linears, strict=True):
            torch.testing.assert_close(ours[index, 0], linear.bias.detach(), rtol=1e-4, atol=1e-6)
        compact = list(head.low_rank.parameters()) if rank else []
        for ours, vectors in zip(state.heads.vectors, compact, strict=True):
            torch.testing.assert_close(ours[index], vectors.detach(), rtol=1e-4, atol=1e-6)


def test_a_seed_is_the_same_head_whatever_seeds_are_beside_it() -> None:
    spec = replace(SPEC, dropout=0.2)
    together = replace(STAGE, spec=spec, params=replace(STAGE.params, seeds=(3, 1, 2)))
    alone = replace(STAGE, spec=spec, params=replace(STAGE.params, seeds=(1,)))
    states = [stage.start() for stage in (together, alone)]
    for stage, state in zip((together, alone), states, strict=True):
        run(stage, state, range(2))
    for ours, other in zip(states[0].heads.weights, states[1].heads.weights, strict=True):
        torch.testing.assert_close(ours[1], other[0], rtol=1e-4, atol=1e-6)


def test_bf16_learns_as_much() -> None:
    accuracies = []
    for precision in ("fp32", "bf16"):
        stage = replace(STAGE, params=replace(STAGE.params, precision=precision))
        state = stage.start()
        run(stage, state, range(6))
        accuracies.append(stage.finish(state)[1]["train_accuracy"][0])
        assert state.heads.parameters.dtype == torch.float32
    assert accuracies[1] == pytest.approx(accuracies[0], abs=0.03)


def test_every_row_is_reported_once_an_epoch() -> None:
    ticks: list[int] = []
    STAGE.step(STAGE.start(), 0, ticks.append)
    assert sum(ticks) == STAGE.rows_per_unit == 600
    assert max(ticks) == 128


def test_learning_rate_falls_at_60_120_and_160_of_200_epochs() -> None:
    params = HeadParams()
    epochs = [0, 59, 60, 119, 120, 159, 160, 199]
    found = [params.learning_rate_at(epoch) for epoch in epochs]
    assert found == pytest.approx([0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008])


def test_failed_and_unlabelled_rows_change_nothing() -> None:
    bad_features, bad_logits, bad_labels = FEATURES[:3].copy(), LOGITS[:3].copy(), LABELS[:3].copy()
    bad_features[0], bad_logits[1], bad_labels[2] = np.nan, np.nan, -1
    with_bad = replace(
        STAGE,
        features=np.vstack([bad_features, FEATURES]),
        logits=np.vstack([bad_logits, LOGITS]),
        labels=np.append(bad_labels, LABELS),
    )
    states = [stage.start() for stage in (STAGE, with_bad)]
    for stage, state in zip((STAGE, with_bad), states, strict=True):
        run(stage, state, range(1))
    assert STAGE.save(states[0]) == with_bad.save(states[1])
    assert with_bad.rows_per_unit == 600


def test_m_is_the_mean_largest_logit_of_the_training_rows_and_recorded() -> None:
    labels = LABELS.copy()
    labels[300:] = -1
    stage = replace(STAGE, labels=labels)
    state = stage.start()
    run(stage, state, range(6))
    _, facts = stage.finish(state)
    expected = LOGITS[:300].max(axis=1).mean(dtype=np.float64)
    assert facts["spec"]["M"] == pytest.approx(expected, rel=1e-12)
    assert (facts["train_rows"], facts["excluded_rows"]) == (300, 300)


def test_m_given_is_kept() -> None:
    assert replace(STAGE, spec=replace(SPEC, M=7.0)).full_spec.M == 7.0


def test_finish_gives_heads_that_predict_as_their_facts_say() -> None:
    stage = replace(STAGE, params=replace(STAGE.params, seeds=(0, 1, 2)))
    state = stage.start()
    run(stage, state, range(6))
    files, facts = stage.finish(state)
    assert facts["seeds"] == facts["params"]["seeds"] == [0, 1, 2]
    assert len(set(facts["train_loss"])) == 3
    for index, accuracy in enumerate(facts["train_accuracy"]):
        head = load_head(HeadSpec.from_dict(facts["spec"]), files["weights.safetensors"], index)
        prediction = predict_probabilities(head, FEATURES, LOGITS).argmax(axis=1)
        assert (prediction == LABELS).mean() == pytest.approx(accuracy)


def test_save_holds_weights_and_momentum() -> None:
    state = STAGE.start()
    run(STAGE, state, range(1))
    tensors = load(STAGE.save(state))
    assert set(tensors) == {"momentum", *dict(Head(STAGE.full_spec).named_parameters())}
    assert tensors["linears.0.weight"].shape == (1, 16, 32)


def test_collapsed_head_is_refused_with_its_seed_and_the_remedy() -> None:
    stage = replace(STAGE, params=HeadParams(epochs=2, weight_decay=1.0, seeds=(7, 8)))
    state = stage.start()
    run(stage, state, range(2))
    with pytest.raises(
        StageError, match=r"seed 7: collapsed.*weight decay \(now 1; try 0\.0005\).*layers"
    ):
        stage.finish(state)


def test_collapsed_heads_can_be_kept_and_are_named() -> None:
    params = replace(STAGE.params, weight_decay=1.0, seeds=(7, 8))
    stage = replace(STAGE, params=params, keep_collapsed=True)
    state = stage.start()
    run(stage, state, range(6))
    _, facts = stage.finish(state)

    assert facts["collapsed"] == [7, 8]
    assert "collapsed" not in STAGE.finish(trained_state())[1]


def trained_state() -> HeadState:
    state = STAGE.start()
    run(STAGE, state, range(6))
    return state


def test_a_collapse_gets_only_applicable_advice() -> None:
    linear = replace(STAGE.spec, layers=())
    stage = replace(STAGE, spec=linear, params=replace(STAGE.params, weight_decay=0.0))
    state = stage.start()
    with torch.no_grad():
        state.heads.parameters.zero_()
    with pytest.raises(StageError, match=r"has \d\.\d+\); train for more epochs$"):
        stage.finish(state)


def test_one_collapsed_head_among_good_ones_is_refused() -> None:
    stage = replace(STAGE, params=replace(STAGE.params, seeds=(7, 8)))
    state = stage.start()
    run(stage, state, range(6))
    for tensor in (*state.heads.weights, *state.heads.biases):
        tensor[1] = 0.0
    with pytest.raises(StageError, match="head of seed 8: collapsed"):
        stage.finish(state)


def test_loss_that_is_no_number_stops_the_training_and_names_the_seed() -> None:
    stage = replace(STAGE, params=replace(STAGE.params, seeds=(3, 4)))
    state = stage.start()
    state.heads.biases[0][1] = torch.nan
    with pytest.raises(StageError, match="seed 4: the loss of epoch 1 is nan; lower the learning"):
        run(stage, state, range(1))


def test_stage_travels_after_it_was_used() -> None:
    stage = replace(STAGE)
    run(stage, stage.start(), range(1))
    again = pickle.loads(pickle.dumps(stage))
    assert again.params == stage.params
    assert again.save(again.start()) == stage.save(stage.start())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": LABELS[:5]}, "of shapes"),
        ({"labels": np.full(600, -1)}, "found none among 600"),
        ({"labels": LABELS + 1}, "labels below 4, found 4"),
        ({"logits": LOGITS[:, :3]}, "of shapes"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(STAGE, **change)


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 0},
        {"batch_rows": 0},
        {"learning_rate": 0.0},
        {"momentum": 1.0},
        {"seeds": (-1,)},
        {"seeds": ()},
        {"seeds": (1, 1)},
        {"precision": "fp16"},
    ],
)
def test_params_that_cannot_be_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError):
        HeadParams(**bad)


def test_uniform_guess_is_the_measure_of_collapse() -> None:
    state = STAGE.start()
    with torch.no_grad():
        state.heads.parameters.zero_()
    with pytest.raises(StageError, match=f"{math.log(4):.4f}"):
        STAGE.finish(state)


def test_a_head_that_is_only_slow_is_kept() -> None:
    """Its loss is close to that of a guess, but its accuracy is much higher."""
    state = STAGE.start()
    run(STAGE, state, range(6))
    state.heads.weights[-1].mul_(1e-3)
    state.heads.biases[-1].mul_(1e-3)
    _, facts = STAGE.finish(state)
    assert facts["train_loss"][0] > 0.98 * math.log(4)
    assert facts["train_accuracy"][0] > 0.5


SELECTION = Selection("others", FEATURES[:200], LOGITS[:200], LABELS[::-1][:200].copy())


def test_the_best_epoch_of_each_seed_is_kept() -> None:
    """Every epoch is judged by hand; the published weights are those of the first best one."""
    params = replace(STAGE.params, seeds=(0, 4), learning_rate=2.0)
    stage = replace(STAGE, params=params, selection=SELECTION)
    last = replace(stage, selection=None)
    state, judged, weights = stage.start(), [], []
    for unit in range(6):
        stage.step(state, unit, ignore)
        weights.append(last.weights(state))
        heads = [load_head(stage.full_spec, weights[-1], index) for index in range(2)]
        said = [predict_probabilities(head, FEATURES[:200], LOGITS[:200]) for head in heads]
        judged.append([(each.argmax(axis=1) == SELECTION.labels).mean() for each in said])
    best = np.array(judged).argmax(axis=0)
    files, facts = stage.finish(state)

    assert facts["best_epoch"] == (best + 1).tolist()
    assert facts["selection_accuracy"] == pytest.approx(np.max(judged, axis=0).tolist())
    assert set(best) != {5}
    kept = load(files["weights.safetensors"])
    for index, epoch in enumerate(best):
        of_epoch = load(weights[epoch])
        for name, tensor in kept.items():
            torch.testing.assert_close(tensor[index], of_epoch[name][index], rtol=0, atol=0)


def test_a_resumed_training_remembers_its_best_epoch() -> None:
    stage = replace(STAGE, selection=SELECTION)
    straight, first = stage.start(), stage.start()
    run(stage, straight, range(5))
    run(stage, first, range(3))
    resumed = stage.load(stage.save(first))
    run(stage, resumed, range(3, 5))

    assert stage.save(resumed) == stage.save(straight)
    assert stage.weights(resumed) == stage.weights(straight)


def test_selection_needs_labelled_rows() -> None:
    unlabelled = replace(SELECTION, labels=np.full(200, -1))
    stage = replace(STAGE, selection=unlabelled)
    with pytest.raises(InputError, match="--select-on others: expected labelled rows"):
        stage.step(stage.start(), 0, ignore)
