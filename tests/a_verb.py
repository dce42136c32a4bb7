"""A verb of a test: it counts the rows of a feature set. Nothing else in the project knows it."""

from pydantic import Field, PositiveInt

from pipeline.make import ArtifactJob, Output
from pipeline.stage import Preview, Stage
from pipeline.workspace import Workspace
from stages.data.option_types import FeatureSetName


class CountRows(Stage):
    """Count the rows of a feature set."""

    verb = "count-rows"
    makes = "result"
    examples = ("count-rows --features clouds@net",)

    features: FeatureSetName = Field(description="Feature set whose rows are counted.")
    times: PositiveInt = Field(1, description="Factor of the count.")

    def job(self, workspace: Workspace) -> ArtifactJob:
        store = workspace.store
        found = store.open(self.features)
        plan = {
            "stage": {"name": self.verb, "version": 1, "params": {"times": self.times}},
            "inputs": {"features": found.name},
        }
        name = workspace.output_name("result", None, f"{found.name}-rows", "rows", plan)

        def compute() -> Output:
            return {}, {"rows": self.times * found.n_rows}

        what = f"count {found.n_rows:,} rows"
        return ArtifactJob(
            store,
            store.artifact("result", name),
            plan,
            title=f"count {name}",
            preview=Preview(what, {"result": name}),
            compute=compute,
        )
