"""Helpers that make stages in a store through the Python API."""

from pathlib import Path

from pipeline.executors import Executor, LocalExecutor
from pipeline.journal import Journal
from pipeline.make import make
from pipeline.runner import RunReport
from pipeline.stage import NO_PREVIEW, Made, Stage
from pipeline.workspace import Execution, Workspace
from stages.data.corruption_files import CorruptedFiles
from stages.data.corruption_set import corruption_job
from stages.data.corruption_work import CorruptionWork
from stages.reflection.extraction import Extraction, extraction_job
from stages.reflection.retry import retry_job
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.shardset import ShardSet

CPU = Execution(device="cpu", executor="local")


def make_in(store: FeatureStore, stage: Stage, data_root: object = "") -> Made:
    """The output of a stage, computed in this process."""
    return make(stage, Workspace(store, str(data_root), CPU, command=("test",)))


def extract(
    store: FeatureStore, extraction: Extraction, executor: Executor | None = None
) -> FeatureSet:
    """The feature set of an extraction, computed in this process by default."""
    job = extraction_job(store, extraction, executor or LocalExecutor(1))
    return job.run(journal_of(store)).output


def retry_failed(store: FeatureStore, extraction: Extraction) -> FeatureSet:
    """The feature set of an extraction, after its failed rows were recomputed."""
    job = extraction_job(store, extraction, LocalExecutor(1))
    return retry_job(job, store).run(journal_of(store)).output


def journal_of(store: FeatureStore) -> Journal:
    """The journal of a run of the tests."""
    return Journal.of(store.location, ["test"])


def write_corrupted(
    store: FeatureStore,
    work: CorruptionWork | CorruptedFiles,
    folder: str,
    executor: Executor,
    journal: Journal,
) -> tuple[ShardSet, RunReport]:
    """The corrupted set of some work, as the stage corrupt writes it."""
    place = Path(folder).absolute()
    done = corruption_job(store, work, place, executor, work.plan(), NO_PREVIEW).run(journal)
    assert isinstance(done.report, RunReport)
    return done.output, done.report
