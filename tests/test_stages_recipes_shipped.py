"""The built-in recipes are valid, and share steps where possible."""

import pytest

from stages.errors import InputError
from stages.recipes.shipped import Cost, cost_of, recipe_of, shipped_text, shipped_texts

N_INSTANCES = {
    "table-1": 3,  # the corrupted set, the runs, a report
    "table-2": 25,  # f, eleven feature sets, H and three controls, eight results, a report
    "table-3": 25,  # f, two feature sets, H, a control and a result for each network, a report
    "table-4": 55,  # five f, each with three feature sets, H, four controls and a result, ...
    "table-5": 42,
    "table-6": 82,  # of each network: three trainings, six sets, nine heads, two results
    "table-7": 16,
    "table-8": 16,
    "table-9": 121,  # f, features and four heads of three domains, two sets of six pairs
    "table-10": 10,
    "table-11": 25,
    "table-12": 3,  # two data sets of image quality, a report
    "figure-1": 6,  # f, features, maps, a sheet, their faithfulness, a report
    "figure-2": 42,
    "figure-3": 42,
    "figure-4": 6,
    "figure-6": 42,
    "figure-7": 42,
    "figure-8": 42,
    "figure-9": 539,  # 67 snapshots with three feature sets, two heads and two results each
    "figure-10": 539,
    "figure-11": 3,
    "batch-statistics": 17,  # f, six feature sets, six heads, two results, a report
    "label-errors": 17,  # four f, their features, and two curations each, a report
    "layers": 39,  # seven heads for two decays, as trained and with temperatures
    "readings": 89,  # 27 heads on one f, three other f, three extractions
}
LAST_LAYERS = {
    "f's last layer, retrained",
    "f's last layer, H's decay",
    "f_L, no hidden layer",  # the name in the paper's Table 8
}
METHODS = ("table-4",)
LEARNING = ("table-1", "figure-11")
DOMAINS = ("table-9",)
QUALITY = ("table-12",)
UNLABELLED = ("table-6",)


def shipped(name, **changes):
    return recipe_of(shipped_text(name), f"{name}.yaml", changes)


def labels_of_last_layers(recipe):
    heads = [each for each in recipe.instances if each.stage.verb == "train-head"]
    own = {each.step for each in heads if (each.stage.reads, each.stage.layers) == ("features", ())}
    judged = [each.stage.heads for each in recipe.instances if hasattr(each.stage, "heads")]
    return {head.label for some in judged for head in some or () if head.name in own}


def labels(recipe):
    return [instance.label for instance in recipe.instances]


def test_the_tables_and_figures_of_the_paper_ship_in_their_order_before_others():
    assert list(shipped_texts()) == list(N_INSTANCES)


@pytest.mark.parametrize("name", N_INSTANCES)
def test_a_recipe_that_ships_is_valid(name):
    recipe = shipped(name)

    assert recipe.name == name
    assert recipe.title
    assert recipe.about
    assert len(recipe.instances) == N_INSTANCES[name]
    assert labels(recipe)[-1] == "report"
    assert labels_of_last_layers(recipe) <= LAST_LAYERS


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in N_INSTANCES
        if name not in (*LEARNING, *DOMAINS, *QUALITY, *METHODS, *UNLABELLED)
    ],
)
def test_a_recipe_that_ships_runs_on_other_data(name):
    recipe = shipped(name, dataset="digits", networks="[cnn2]", preset="quick", epochs="5")
    trainings = [each for each in recipe.instances if each.kind.name == "train-sensing"]

    assert {(each.stage.dataset, each.stage.network) for each in trainings} == {("digits", "cnn2")}


def test_the_methods_of_table_4_differ_in_nothing_else():
    recipe = shipped(
        "table-4", augmix_networks="[resnet18]", augmix_preset="paper", augmix_epochs="200"
    )
    steps = ("f", "f-adversarial", "f-noise", "f-augmix")
    stages = {each.step: each.stage for each in recipe.instances if each.step in steps}
    own = ("method", "attacked", "epsilon", "step", "steps", "per_distortion", "jsd_weight")
    changed = [
        {name for name, value in stage if value != getattr(stages["f"], name)}
        for stage in stages.values()
    ]

    assert [stage.method for stage in stages.values()] == [None, "adversarial", "noise", "augmix"]
    assert set().union(*changed) <= set(own)
    assert stages["f"] == shipped("table-5", networks="[resnet18]").instances[1].stage


def test_every_domain_is_the_target_of_every_other_one():
    recipe = shipped("table-9", domains="[a, b]", networks="[cnn2]", weights="w.pt")
    pairs = [each.axes for each in recipe.instances if each.step == "judged"]

    assert [(each["source"], each["target"]) for each in pairs] == [("a", "b"), ("b", "a")]


def test_classifiers_of_self_supervised_features_start_from_them():
    recipe = shipped("table-6", networks="[cnn2]", hidden="20")
    trainings = {
        each.step: each.stage for each in recipe.instances if each.kind.name == "train-sensing"
    }

    assert {name: each.network for name, each in trainings.items()} == {
        "simclr": "cnn2",
        "f-linear": "cnn2",
        "f-mlp": "cnn2+20",
    }
    assert trainings["simclr"].params.method.name == "simclr"
    assert {each.from_model for each in trainings.values()} == {None, "simclr"}


def test_active_learning_runs_on_other_data_with_other_sizes():
    recipe = shipped("table-1", dataset="digits", networks="[cnn2]", rounds="3", seeds="[5]")
    runs = recipe.instances[1].stage

    assert (runs.dataset, runs.network, runs.rounds, runs.seeds) == ("digits", "cnn2", 3, (5,))


def test_figure_11_has_the_runs_of_table_1():
    assert shipped("figure-11").instances[1].stage == shipped("table-1").instances[1].stage


@pytest.mark.parametrize("name", ["figure-2", "figure-3", "figure-6", "figure-7", "figure-8"])
def test_the_figures_have_the_steps_of_table_5(name):
    def steps(recipe):
        return {each.label: each.stage for each in recipe.instances if each.step != "report"}

    assert steps(shipped(name)) == steps(shipped("table-5"))


@pytest.mark.parametrize("name", ["figure-2", "figure-3", "figure-6", "figure-7", "figure-8"])
def test_a_figure_with_an_assumed_number_says_so(name):
    assert "our reading" in shipped(name).about


@pytest.mark.parametrize("name", ["table-2", "table-3", "table-7", "table-8", "table-11"])
def test_the_tables_train_the_networks_and_heads_of_table_5(name):
    """The same parameters make the same plans: what one recipe has made the others find."""
    others = {each.stage for each in shipped("table-5").instances if each.step in ("f", "H")}
    mine = {each.stage for each in shipped(name).instances if each.step in ("f", "H")}

    assert mine & others


def test_snapshots_are_taken_at_the_67_epochs_of_the_paper():
    epochs = [each.axes["epoch"] for each in shipped("figure-9").instances if each.step == "f"]

    assert epochs == list(range(1, 201, 3))


def test_heads_on_held_out_rows_are_marked():
    heads = [each.stage for each in shipped("figure-10").instances if each.step == "H"]

    assert {head.rows for head in heads} == {"held-out"}


def test_the_cost_counts_each_seed():
    assert cost_of(shipped("table-7", seeds="[0, 1]")) == Cost(1, 2, 20)


def test_a_recipe_that_does_not_ship_is_refused():
    with pytest.raises(
        InputError, match="there is no recipe 'table-13', expected one of table-1, table-2"
    ):
        shipped_text("table-13")


def readings_of(**changes):
    recipe = shipped("readings", **changes)
    return {
        each.axes.get("reading", each.step): each.stage
        for each in recipe.instances
        if each.kind.name == "train-head"
    }


def test_a_reading_changes_one_choice_and_a_pair_two():
    found = readings_of(readings="[H, no scaling]", pairs="[no scaling + decay 5e-4]")
    base = found["H"]

    assert found["no scaling"] == base.model_copy(update={"scaling": "none"})
    changes = {"scaling": "none", "weight_decay": 5e-4}
    assert found["no scaling + decay 5e-4"] == base.model_copy(update=changes)


def test_a_part_of_the_readings_can_be_run():
    heads = readings_of(readings="[H]", pairs="[]")

    controls = ["augmented-H", "best", "scaled", "both", "layer", "decayed"]
    assert [name for name in heads if name in ("H", *controls)] == ["H", *controls]
    assert "CE" not in heads


def test_the_first_reading_is_the_h_of_table_5():
    others = {each.stage for each in shipped("table-5").instances if each.step == "H"}

    assert readings_of()["H"].model_copy(update={"keep_collapsed": False}) in others
