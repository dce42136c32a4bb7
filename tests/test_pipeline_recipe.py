"""Recipes with two small kinds: `make` stores a number, `add` adds the numbers of other steps."""

import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import Field

from pipeline.errors import LoopFailedError, RecipeError, RunFailedError
from pipeline.journal import Journal, last_unfinished
from pipeline.recipe import read_recipe
from pipeline.recipe_run import RecipeJob
from pipeline.stage import Several, Stage, State
from pipeline.steps import StepKind
from pipeline.workspace import Workspace
from pipeline.yaml_lines import read_yaml
from store.catalog import FeatureStore
from store.plan import fingerprint

RECIPE = """\
recipe: sums
title: Sums of numbers
parameters:
  numbers: [1, 2]
  factor: 10
steps:
  n:
    stage: make
    each: {number: $numbers}
    value: $number
  scaled:
    stage: make
    each: {way: [plain, loud]}
    of: n
    value: $factor
    note: ${way}, $$ and $factor
  both:
    stage: add
    base: n
    terms: {"n": n, "scaled, {way}": scaled}
report:
  terms: [both]
"""


class NumberStage(Stage):
    def job(self, workspace):
        raise AssertionError("the kind of the step makes the job")


class MakeNumber(NumberStage):
    verb = "make"
    makes = "number"

    value: int
    of: str | None = None
    note: str = ""
    rate: float = 0.0
    widths: Several[int] = ()

    def check(self, workspace, needs):
        if self.value == context_of(workspace).refused:
            raise ValueError(f"there is no {self.value}")


class AddNumbers(NumberStage):
    verb = "add"
    makes = "number"

    base: str | None = None
    terms: dict[str, str] = Field(default_factory=dict)


class ReportNumbers(NumberStage):
    verb = "report"
    makes = "report"

    terms: dict[str, str]


@dataclass
class Context:
    """What was run so far, and the value at which `make` refuses to work."""

    store: FeatureStore
    ran: list[str] = field(default_factory=list)
    refused: int | None = None
    fails_at: int | None = None
    error: type[Exception] = RunFailedError

    @property
    def workspace(self):
        found = Workspace(self.store)
        found.once("context", lambda: self)
        return found


def context_of(workspace):
    return workspace.once("context", lambda: None)


@dataclass
class NumberJob:
    """A job that stores a number."""

    context: Context
    kind: str
    plan: dict
    total: int

    @property
    def output_name(self):
        return f"{self.kind}-{fingerprint(self.plan)}"

    @property
    def place(self):
        return f"results/{self.output_name}"

    @property
    def output(self):
        return self.context.store.artifact("result", self.output_name)

    def progress(self):
        state = State.COMPLETE if self.output.is_complete() else State.MISSING
        return state, self.output_name

    def run(self, journal):
        journal.begin()
        self.context.ran.append(self.output_name)
        if self.context.fails_at == self.total:
            raise self.context.error(f"{self.total} is too much")
        self.output.claim(self.plan)
        self.output.write({}, {"total": self.total}, plan=self.plan)


def total_of(context, name):
    return context.store.artifact("result", name).card()["total"]


def make(workspace, stage, inputs):
    context = context_of(workspace)
    total = stage.value * (total_of(context, inputs["of"]) if "of" in inputs else 1)
    plan = {"make": {"value": total, "note": stage.note}}
    return NumberJob(context, "make", plan, total)


def add(workspace, stage, inputs):
    context = context_of(workspace)
    terms = {
        f"{term.label} {dict(term.axes)}": total_of(context, term.name) for term in inputs["terms"]
    }
    return NumberJob(context, "add", {"add": terms}, sum(terms.values()))


KINDS = {
    "make": StepKind("make", MakeNumber, make, one={"of": ("make",)}),
    "add": StepKind(
        "add",
        AddNumbers,
        add,
        one={"base": ("make",)},
        many={"terms": ("make", "add")},
        labelled=("terms",),
        taken_labels=("zero",),
    ),
    "report": StepKind(
        "report", ReportNumbers, add, many={"terms": ("add",)}, taken_axes=("total", "sum")
    ),
}


def read(text, changes=None, kinds=KINDS):
    return read_recipe(text, "sums.yaml", kinds, changes)


def labels(recipe):
    return [instance.label for instance in recipe.instances]


def instance(recipe, label):
    return next(each for each in recipe.instances if each.label == label)


def refusal(text, changes=None):
    with pytest.raises(RecipeError) as caught:
        read(text, changes)
    return str(caught.value)


# What a recipe says


def test_what_refers_to_a_step_inherits_its_axes():
    assert labels(read(RECIPE)) == [
        "n[number=1]",
        "n[number=2]",
        "scaled[number=1,way=plain]",
        "scaled[number=1,way=loud]",
        "scaled[number=2,way=plain]",
        "scaled[number=2,way=loud]",
        "both[number=1]",
        "both[number=2]",
        "report",
    ]


def test_a_reference_is_to_the_instance_that_agrees_on_the_axes():
    assert instance(read(RECIPE), "scaled[number=2,way=loud]").one == {"of": "n[number=2]"}


def test_a_key_that_collects_takes_every_instance_that_agrees():
    assert instance(read(RECIPE), "both[number=2]").many["terms"] == (
        ("n", "n[number=2]"),
        ("scaled, plain", "scaled[number=2,way=plain]"),
        ("scaled, loud", "scaled[number=2,way=loud]"),
    )


def test_a_list_collects_under_the_names_of_the_steps():
    found = instance(read(RECIPE), "report").many["terms"]

    assert found == (("both", "both[number=1]"), ("both", "both[number=2]"))


def test_parameters_and_axes_are_filled_in_with_their_types():
    stage = instance(read(RECIPE), "scaled[number=1,way=loud]").stage

    assert (stage.value, stage.note) == (10, "loud, $ and 10")


def test_a_parameter_can_be_set_to_another_value():
    recipe = read(RECIPE, {"numbers": "[7]", "factor": "3"})

    assert recipe.parameters == {"numbers": [7], "factor": 3}
    assert labels(recipe)[0] == "n[number=7]"


def test_two_references_join_on_the_axes_that_they_share():
    text = RECIPE.replace(
        "  both:\n    stage: add\n    base: n\n", "  both:\n    stage: add\n    base: scaled\n"
    )

    assert [label for label in labels(read(text)) if label.startswith("both")] == [
        "both[number=1,way=plain]",
        "both[number=1,way=loud]",
        "both[number=2,way=plain]",
        "both[number=2,way=loud]",
    ]


def test_steps_may_be_written_in_any_order():
    text = """\
recipe: later
steps:
  second: {stage: make, of: first, value: 2}
  first: {stage: make, value: 1}
"""
    assert labels(read(text)) == ["first", "second"]


def test_an_axis_can_be_a_range_of_numbers():
    text = RECIPE.replace(
        "each: {number: $numbers}", "each: {number: {from: 1, to: $factor, by: 4}}"
    )
    text = text.replace("  numbers: [1, 2]\n", "")

    assert [label for label in labels(read(text)) if label.startswith("n")] == [
        "n[number=1]",
        "n[number=5]",
        "n[number=9]",
    ]


def test_an_axis_can_be_unlike_another_one():
    text = RECIPE.replace("each: {way: [plain, loud]}", "each: {way: {in: [1, 3], unlike: number}}")
    found = [label for label in labels(read(text)) if label.startswith("scaled")]

    assert found == ["scaled[number=1,way=3]", "scaled[number=2,way=1]", "scaled[number=2,way=3]"]


SETS = RECIPE.replace(
    "each: {way: [plain, loud]}",
    "each: {way: {in: $ways, sets: {plain: {}, loud: {note: LOUD}, big: {value: 100}}}}",
).replace("  factor: 10", "  factor: 10\n  ways: [plain, loud, loud + big]")


def test_the_values_of_an_axis_can_set_keys_and_several_together():
    scaled = {each.axes["way"]: each.stage for each in read(SETS).instances
              if each.step == "scaled" and each.axes["number"] == 1}  # fmt: skip

    assert (scaled["plain"].note, scaled["plain"].value) == ("plain, $ and 10", 10)
    assert (scaled["loud"].note, scaled["loud"].value) == ("LOUD", 10)
    assert (scaled["loud + big"].note, scaled["loud + big"].value) == ("LOUD", 100)


def test_an_axis_that_sets_keys_may_be_empty():
    found = read(SETS.replace("ways: [plain, loud, loud + big]", "ways: []"))

    assert not [label for label in labels(found) if label.startswith("scaled")]
    assert len([label for label in labels(found) if label.startswith("both")]) == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("loud + big]", "lout]", "'lout' is not in sets .did you mean 'loud'.*; there are: plain"),
        ("loud + big]", "loud + loud]", "'loud . loud' sets note twice"),
        ("{note: LOUD}", "LOUD", "sets: expected the keys of each value"),
        ("{note: LOUD}", "{of: n}", "'loud' sets of, which has one value for all instances"),
        ("{note: LOUD}", "{nota: 1}", "unknown key 'nota' .did you mean 'note'"),
        ("{value: 100}", "{value: x}", "value: expected"),
    ],
)
def test_keys_that_an_axis_cannot_set_are_refused(old, new, message):
    with pytest.raises(RecipeError, match=rf"sums.yaml:\d+: .*{message}"):
        read(SETS.replace(old, new))


def test_numbers_with_an_exponent_are_numbers():
    text = RECIPE.replace("    value: $number\n", "    value: $number\n    rate: 5e-3\n")

    assert instance(read(text), "n[number=1]").stage.rate == 0.005


def test_a_merge_key_brings_the_keys_of_another_step():
    text = """\
recipe: merged
steps:
  first: &first {stage: make, value: 1, note: kept}
  second: {<<: *first, value: 2}
"""
    stage = instance(read(text), "second").stage

    assert (stage.value, stage.note) == (2, "kept")


LIKE = """\
recipe: other
like: sums
report: {terms: [both, more]}
"""


def test_a_derived_recipe_has_the_same_steps_and_its_own_report():
    text = LIKE.replace("both, more", "both")
    recipe = read_recipe(text, "other.yaml", KINDS, {"factor": "3"}, {"sums": RECIPE})

    assert (recipe.name, recipe.title) == ("other", "Sums of numbers")
    assert labels(recipe) == labels(read(RECIPE))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LIKE, "other.yaml:3: step report: terms: there is no step 'more'"),
        (LIKE.replace("like: sums", "like: sum"), "other.yaml:2: like: there is no recipe 'sum'"),
        (LIKE + "parameters: {}\n", "sums.yaml:9: $numbers: no such parameter"),
    ],
)
def test_errors_in_a_derived_recipe_are_located_in_its_source(text, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        read_recipe(text, "other.yaml", KINDS, {}, {"sums": RECIPE})


# What is wrong, and where


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "    value: $number\n",
            "    value: $number\n    vlaue: 1\n",
            "sums.yaml:11: step n: unknown key 'vlaue' (did you mean 'value'?)",
        ),
        ("    value: $number\n", "", "sums.yaml:7: step n: 'value' is missing"),
        (
            "title: Sums",
            "tittle: Sums",
            "sums.yaml:2: unknown key 'tittle' (did you mean 'title'?)",
        ),
        ("recipe: sums\n", "", "sums.yaml:1: 'recipe' is missing"),
        ("recipe: sums\n", "recipe: a/b\n", "sums.yaml:1: recipe: String should match pattern"),
        (
            "recipe: sums\n",
            f"recipe: {'a' * 101}\n",
            "sums.yaml:1: recipe: String should have at most 100 characters, found 'aaa",
        ),
        ("recipe: sums\n", "recipe: sums\nlike: [sums]\n", "sums.yaml:2: like: there is no recipe"),
        (
            "    stage: make\n    each: {number",
            "    each: {number",
            "sums.yaml:7: step n: 'stage' is missing",
        ),
        (
            "stage: add",
            "stage: ad",
            "sums.yaml:18: step both: unknown stage 'ad' (did you mean 'add'?)",
        ),
        ("stage: add", "stage: report", "sums.yaml:18: step both: unknown stage 'report'"),
        ("stage: add", "stage: [add]", "sums.yaml:18: step both: unknown stage '['add']'"),
        (
            "of: n\n",
            "of: m\n",
            "sums.yaml:14: step scaled: of: there is no step 'm'; there are: n, scaled",
        ),
        (
            "of: n\n",
            "of: both\n",
            "sums.yaml:14: step scaled: of: expected a step of stage make, found 'both'",
        ),
        ("of: n\n", "of: [n]\n", "sums.yaml:14: of: expected the name of a step, found ['n']"),
        ("of: n\n", "of: $way\n", "sums.yaml:14: $way: no such parameter or axis"),
        (
            "terms: [both]",
            "terms: [bath]",
            "sums.yaml:22: step report: terms: there is no step 'bath'",
        ),
        ("terms: [both]", "terms: []", "sums.yaml:22: terms: expected steps, as in [H]"),
        ("terms: [both]", "terms: both", "sums.yaml:22: terms: expected steps, as in [H]"),
        ('"scaled, {way}"', "scaled", "'scaled' would name several instances of 'scaled'"),
        (
            '{"n": n,',
            '{"zero": n,',
            "sums.yaml:20: step both: terms: 'zero', the label of 'n', is reserved",
        ),
        (
            '{"n": n,',
            '{"": n,',
            "sums.yaml:20: step both: terms: '', the label of 'n', is blank",
        ),
        (
            "way: [plain, loud]",
            "on: [plain, loud]",
            "sums.yaml:13: expected a string as key, but YAML does not read 'on'",
        ),
        (
            "title: Sums",
            "? [1]\n: Sums",
            "sums.yaml:2: expected a string as key, but YAML does not read this",
        ),
        ('"scaled, {way}"', '"{day}"', "there is no axis 'day' (did you mean 'way'?)"),
        (
            "value: $factor",
            "value: many",
            "sums.yaml:15: step scaled: value: expected a valid integer, found 'many'",
        ),
        (
            "value: $factor",
            "value: 1.5",
            "sums.yaml:15: step scaled: value: expected a valid integer, found 1.5",
        ),
        (
            "value: $factor",
            "value: true",
            "sums.yaml:15: step scaled: value: expected a valid integer, found True",
        ),
        (
            "    value: $number\n",
            "    value: $number\n    widths: [1,\n      x]\n",
            "sums.yaml:12: step n: widths.1: expected a valid integer, found 'x'",
        ),
        ("steps:\n", "steps: [n]\nothers:\n", "sums.yaml:6: steps: expected a valid dictionary"),
        ("each: {number: $numbers}", "each: [1]", "sums.yaml:9: each: expected axes"),
        (
            "each: {number: $numbers}",
            "each: {number: 3}",
            "sums.yaml:9: axis number: expected a list",
        ),
        (
            "each: {number: $numbers}",
            "each: {number: []}",
            "sums.yaml:9: axis number: expected a list",
        ),
        (
            "each: {number: $numbers}",
            "each: {number: {from: 1, to: 9000}, more: {from: 1, to: 9000}}",
            "sums.yaml:7: with parameters and axes expanded, the recipe has more than",
        ),
        (
            "each: {number: $numbers}",
            "each: {number: {from: 0, to: 100000000000}}",
            "sums.yaml:9: axis number: expected at most 10,000 values, found 100,000,000,001",
        ),
        (
            "each: {number: $numbers}",
            "each: {number: [1, 1]}",
            "sums.yaml:9: axis number: a value occurs twice",
        ),
        (
            "each: {number: $numbers}",
            "each: {factor: $numbers}",
            "sums.yaml:9: axis 'factor' has the name of a parameter",
        ),
        (
            "each: {number: $numbers}",
            "each: {number: $nmbers}",
            "sums.yaml:9: $nmbers: no such parameter or axis (did you mean 'numbers'?)",
        ),
        (
            "way: [plain, loud]",
            "way: {in: [1], unlike: numbr}",
            "sums.yaml:13: step scaled: way: unlike names 'numbr', which is not another axis (did "
            "you mean 'number'?); there are: number",
        ),
        (
            "way: [plain, loud]",
            "number: [1]",
            "sums.yaml:13: step scaled: axis 'number' is inherited from another step",
        ),
        (
            "  factor: 10\n",
            "  factor: 10\n  spare: 1\n",
            "sums.yaml:6: parameter 'spare' is not used by any step",
        ),
        (
            "  factor: 10\n",
            "  factor: 10\n  factor: 11\n",
            "sums.yaml:6: duplicate key 'factor', first at sums.yaml:5",
        ),
        ("  both:\n", "  report:\n", "sums.yaml:17: 'report' is the name of the last step"),
        ("  both:\n", "  b.o:\n", "sums.yaml:17: 'b.o' cannot be a step"),
        ("title: Sums", "title: [Sums", "sums.yaml:3: invalid YAML"),
        ("title: Sums", "title: \x07", "sums.yaml:1: invalid YAML"),
        ("title: Sums of numbers", "title: &a [*a]", "sums.yaml:2: this contains itself"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_number(old, new, message):
    assert old in RECIPE
    found = refusal(RECIPE.replace(old, new, 1))

    assert message in found
    assert "\n" not in found


def test_an_axis_that_the_report_cannot_take_is_refused_where_it_is_written():
    found = refusal(
        RECIPE.replace("{number: $numbers}", "{total: $numbers}").replace("$number\n", "$total\n")
    )

    assert found.startswith("sums.yaml:9: step n: an axis cannot be called 'total'")


def test_an_axis_that_does_not_reach_the_report_may_have_any_name():
    text = RECIPE.replace("{way: [", "{sum: [").replace("{way}", "{sum}")

    assert labels(read(text))[-1] == "report"


def test_a_recipe_without_steps_is_refused():
    assert refusal("recipe: none\nsteps: {}\n") == (
        "sums.yaml:2: steps: expected one step or more, found {}"
    )


def test_aliases_that_expand_to_billions_are_refused_at_once():
    levels = [f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    started = time.process_time()
    found = refusal("\n".join(["recipe: bomb", "parameters:", "  a0: &a0 x", *levels, RECIPE[13:]]))

    assert re.match(r"sums.yaml:3: this has more than 100,000 values", found)
    assert time.process_time() - started < 5


def test_a_text_that_is_nested_too_deeply_is_refused():
    assert "nested too deeply" in refusal("[" * 5000 + "]" * 5000)


def test_steps_that_need_each_other_are_refused_with_the_way_round():
    text = """\
recipe: round
steps:
  a: {stage: make, value: 1, of: c}
  b: {stage: make, value: 1, of: a}
  c: {stage: make, value: 1, of: b}
"""
    found = refusal(text)

    assert re.fullmatch(r"sums.yaml:[345]: the steps form a cycle: .* needs .*", found)
    assert {"a", "b", "c"} <= set(found.split())


@pytest.mark.parametrize("text", ["", "- a", "word"])
def test_a_text_that_is_no_recipe_is_refused(text):
    assert refusal(text) == "sums.yaml:1: expected a mapping with the keys recipe and steps"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("factr", "3", "--set factr: unknown parameter (did you mean 'factor'?)"),
        ("factor", "many", "--set factor=many: expected a whole number such as 10, found many"),
        ("factor", "1.5", "expected a whole number such as 10, found 1.5"),
        ("factor", "true", "expected a whole number such as 10, found True"),
        ("factor", "", "expected a whole number such as 10, found nothing"),
        ("factor", "[", "invalid YAML"),
        ("numbers", "1", "--set numbers=1: expected a list such as [1, 2], found 1"),
        ("numbers", "[one]", "expected a whole number such as 1, found one"),
    ],
)
def test_a_parameter_is_not_set_to_another_type(name, value, message):
    assert message in refusal(RECIPE, {name: value})


@pytest.mark.parametrize(
    ("default", "value", "found"),
    [("8/255", "0.03", 0.03), ("8/255", "0", 0), ("0.01", "2/255", "2/255"), ("1/2", "x", "x")],
)
def test_a_fraction_is_a_number(default, value, found):
    text = RECIPE.replace("factor: 10", f"factor: {default}").replace("value: $factor", "value: 1")

    assert read(text, {"factor": value}).parameters["factor"] == found
    assert "expected a number such as" in refusal(text, {"factor": "[1]"})


def test_a_wrong_recipe_is_refused_at_once():
    started = time.process_time()
    refusal(RECIPE.replace("stage: add", "stage: ad"))

    assert time.process_time() - started < 2


def test_lines_are_those_of_the_text():
    text = read_yaml("a:\n  b: 1\n  c:\n    - x\n    - y\n", "t")

    assert [text.where("a", "b"), text.where("a", "c", 1), text.where("a", "z")] == [
        "t:2",
        "t:5",
        "t:1",
    ]


# Running it


@pytest.fixture
def context(store):
    return Context(store)


def run(context, text=RECIPE, changes=None, said=None):
    job = RecipeJob(
        read(text, changes), context.workspace, (said if said is not None else []).append
    )
    with Journal.of(context.store.location, ["run", "sums.yaml"]).outcome() as journal:
        return job.run(journal).report


def states(context, text=RECIPE, changes=None):
    job = RecipeJob(read(text, changes), context.workspace)
    return {status.instance.label: status for status in job.statuses}


def test_a_run_makes_every_step(context):
    report = run(context)

    assert report.n_made == 9
    assert all(status.is_complete for status in report.statuses)


def test_a_second_run_makes_nothing(context):
    run(context)
    context.ran.clear()

    assert run(context).n_made == 0
    assert context.ran == []


def test_a_run_prints_its_location(context):
    said = []
    run(context, said=said)

    assert said[0] == "sums: 9 steps: 0 cached, 9 to compute"
    assert said[1].startswith("[1/9] n[number=1]: make")


def test_two_recipes_share_what_has_the_same_plan(context):
    run(context)
    context.ran.clear()
    run(context, RECIPE.replace("recipe: sums", "recipe: others").replace("  n:\n", "  n:\n", 1))

    assert context.ran == []


def test_a_step_that_fails_stops_the_run_and_keeps_the_others(context):
    context.fails_at, said = 20, []
    with pytest.raises(RunFailedError, match="20 is too much"):
        run(context, said=said)

    assert states(context)["scaled[number=1,way=loud]"].state == State.COMPLETE
    assert "continue with `intro-pipe resume`" in said[-1]
    assert last_unfinished(context.store.location).command == ("run", "sums.yaml")


def test_a_step_that_would_fail_again_needs_other_settings(context):
    context.fails_at, context.error, said = 20, LoopFailedError, []
    with pytest.raises(LoopFailedError):
        run(context, said=said)

    assert "change its settings and run the recipe again" in said[-1]
    assert "resume" not in said[-1]


def test_a_run_resumes_after_a_failure(context):
    context.fails_at = 20
    with pytest.raises(RunFailedError):
        run(context)
    n_before, context.fails_at = len(context.ran), None
    run(context)

    assert n_before == 5
    assert len(context.ran) == n_before + 5  # the one that failed, and the four behind it


def test_missing_inputs_are_detected_before_the_first_step(context):
    context.refused = 10
    with pytest.raises(RecipeError, match=r"sums.yaml:11: step scaled\[.*\]: there is no 10"):
        run(context)

    assert context.ran == []


def test_states_before_anything_is_made(context):
    found = states(context)

    assert found["n[number=1]"].state == State.MISSING
    assert found["scaled[number=2,way=loud]"].detail == "waits for n[number=2]"


def test_a_changed_step_is_stale_and_reports_what_changed(context):
    run(context)
    found = states(context, changes={"factor": "11"})

    assert found["n[number=1]"].state == State.COMPLETE
    assert found["scaled[number=1,way=loud]"].state == State.STALE
    assert "make.value: 11, found 10" in found["scaled[number=1,way=loud]"].detail
    assert found["both[number=1]"].state == State.STALE
    assert found["both[number=1]"].detail.startswith("waits for scaled[number=1,way=plain]")


def test_a_recipe_that_is_changed_back_finds_everything(context):
    run(context)
    run(context, changes={"factor": "11"})
    context.ran.clear()
    run(context)

    assert context.ran == []


def test_a_record_that_cannot_be_read_is_no_record(context):
    run(context)
    context.store.storage.write("recipes/sums.json", b"{")

    assert states(context)["report"].state == State.COMPLETE


def test_the_record_has_the_location_of_each_step(context):
    run(context)
    record = json.loads(context.store.storage.read("recipes/sums.json"))

    assert set(record) == set(labels(read(RECIPE)))
    assert all(place.startswith("results/") for place in record.values())


def test_the_journal_has_an_entry_for_each_step(context):
    run(context)
    (path,) = (Path(context.store.location) / "journal").glob("*.jsonl")
    events = [json.loads(line) for line in path.read_text().splitlines()]

    assert [event["name"] for event in events if event["event"] == "step"] == labels(read(RECIPE))
    assert events[-1]["event"] == "done"
