import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load

from stages.errors import InputError, StageError
from stages.introspection.head import Head, HeadSpec, load_head, predict_probabilities
from stages.introspection.train import HeadParams, HeadState, TrainHead


def a_problem(n: int = 600, n_classes: int = 4, feature_dim: int = 8):
    """Features and logits of a linear network, with the labels it mostly gets right."""
    rng = np.random.default_rng(0)
    features = np.abs(rng.normal(size=(n, feature_dim))).astype(np.float32)
    weight = rng.normal(size=(n_classes, feature_dim)).astype(np.float32)
    logits = 2 * (features - features.mean(axis=0)) @ weight.T
    return features, logits, (logits + rng.normal(size=logits.shape) * 0.1).argmax(axis=1)


FEATURES, LOGITS, LABELS = a_problem()
SPEC = HeadSpec(4, 8, layers=(16,))
STAGE = TrainHead(FEATURES, LOGITS, LABELS, SPEC, HeadParams(epochs=6, weight_decay=0.0))


def ignore(n_rows: int) -> None:
    """A tick that nobody listens to."""


def run(stage: TrainHead, state: HeadState, units: range) -> list[dict[str, float]]:
    return [stage.step(state, unit, ignore) for unit in units]


def test_training_learns() -> None:
    state = STAGE.start()
    metrics = run(STAGE, state, range(6))
    _, facts = STAGE.finish(state)
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert facts["train_accuracy"] > 0.55


def test_resumed_run_equals_an_uninterrupted_one_to_the_bit() -> None:
    stage = replace(STAGE, spec=replace(SPEC, dropout=0.2))
    straight = stage.start()
    run(stage, straight, range(5))
    first = stage.start()
    run(stage, first, range(2))
    resumed = stage.load(stage.save(first))
    torch.manual_seed(123)  # whatever happened between the two runs
    run(stage, resumed, range(2, 5))
    assert stage.save(resumed) == stage.save(straight)


def test_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    other = replace(STAGE, params=replace(STAGE.params, seed=1))
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


def test_an_epoch_is_plain_sgd_over_the_rows_in_seeded_order() -> None:
    params = HeadParams(epochs=1, weight_decay=1e-3, batch_rows=100, milestones=())
    stage = TrainHead(FEATURES, LOGITS, LABELS, replace(SPEC, M=1.0), params)
    state = stage.start()
    head = Head(stage.full_spec)
    head.load_state_dict(state.head.state_dict())
    optimizer = torch.optim.SGD(head.parameters(), 0.1, 0.9, weight_decay=1e-3, foreach=False)
    for rows in np.split(np.random.default_rng([0, 0]).permutation(600), 6):
        f, z = torch.from_numpy(FEATURES[rows]), torch.from_numpy(LOGITS[rows])
        optimizer.zero_grad()
        loss = torch.nn.CrossEntropyLoss()(
            head(stage.full_spec.gradient(f, z)), torch.from_numpy(LABELS[rows])
        )
        loss.backward()
        optimizer.step()
    stage.step(state, 0, ignore)
    for ours, obvious in zip(state.head.parameters(), head.parameters(), strict=True):
        torch.testing.assert_close(ours, obvious, rtol=1e-4, atol=1e-6)


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
    assert replace(STAGE, spec=SPEC.with_M(7.0)).full_spec.M == 7.0


def test_finish_gives_a_head_that_predicts_as_its_facts_say() -> None:
    state = STAGE.start()
    run(STAGE, state, range(6))
    files, facts = STAGE.finish(state)
    head = load_head(HeadSpec.from_dict(facts["spec"]), files["weights.safetensors"])
    prediction = predict_probabilities(head, FEATURES, LOGITS).argmax(axis=1)
    assert (prediction == LABELS).mean() == pytest.approx(facts["train_accuracy"])
    assert facts["params"]["epochs"] == 6


def test_save_holds_weights_and_momentum() -> None:
    state = STAGE.start()
    run(STAGE, state, range(1))
    names = set(load(STAGE.save(state)))
    weights = {name for name, _ in state.head.named_parameters()}
    assert names == weights | {f"momentum.{name}" for name in weights}


def test_collapsed_head_is_refused_with_the_remedy() -> None:
    params = HeadParams(epochs=2, weight_decay=1.0)
    stage = replace(STAGE, params=params)
    state = stage.start()
    run(stage, state, range(2))
    with pytest.raises(StageError, match=r"collapsed.*weight decay \(now 1; try 0\.0005\).*layers"):
        stage.finish(state)


def test_loss_that_is_no_number_stops_the_training() -> None:
    state = STAGE.start()
    with torch.no_grad():
        state.head.first.bias.fill_(torch.nan)
    with pytest.raises(StageError, match="loss of epoch 1 is nan; lower the learning rate"):
        run(STAGE, state, range(1))


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
    [{"epochs": 0}, {"batch_rows": 0}, {"learning_rate": 0.0}, {"momentum": 1.0}, {"seed": -1}],
)
def test_params_that_cannot_be_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError):
        HeadParams(**bad)


def test_uniform_guess_is_the_measure_of_collapse() -> None:
    state = STAGE.start()
    with torch.no_grad():
        for parameter in state.head.parameters():
            parameter.zero_()
    with pytest.raises(StageError, match=f"{math.log(4):.4f}"):
        STAGE.finish(state)
