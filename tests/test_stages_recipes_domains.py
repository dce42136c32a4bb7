"""The recipes of domain shift, from files in the layouts of Office-31 and VisDA-2017 to a page."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny_recipe import run_tiny

from stages.recipes.shipped import shipped_text
from stages.sensing.build import build_network
from store.catalog import FeatureStore

SMALL = {
    "networks": "[resnet18]",
    "epochs": "1",
    "seeds": "[0]",
    "layers": "[]",
    "head_epochs": "16",
    "head_weight_decay": "0.0",
}
CLASSES = {"office31": ("bike", "mug", "pen"), "visda2017": ("bus", "knife", "train")}
COUNTS = (3, 2, 1)
"""Photographs of each class: the mean over classes is not that over images."""


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.manual_seed(0)
    torch.save(build_network("resnet18", 7).state_dict(), tmp_path / "w.pt")
    return str(tmp_path / "w.pt")


def write(folder: Path, suffix: str, counts: tuple[int, ...] = (2, 2, 2)) -> None:
    """Images of three of the classes."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES[folder.parts[-2]]):
        (folder / name).mkdir(parents=True)
        for number in range(counts[label]):
            pixels = rng.integers(80 * label, 80 * label + 60, (24, 36, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"frame_{number:04d}.{suffix}")


def outputs(store: FeatureStore, report: object) -> tuple[pd.DataFrame, str]:
    """The table and the page of a recipe that has run."""
    page = report.statuses[-1].job.output
    return pd.read_csv(f"{page.storage.location}/table.csv"), page.read("report.md").decode()


def test_table_9_compares_every_pair_of_domains(tmp_path: Path, weights: str) -> None:
    for domain in ("dslr", "webcam"):
        write(tmp_path / "office31" / domain, "jpg")
    store = FeatureStore(str(tmp_path / "store"))
    changes = {"domains": "[office31-dslr, office31-webcam]", "weights": weights, **SMALL}
    report = run_tiny(store, tmp_path, shipped_text("table-9"), changes)
    table, _ = outputs(store, report)
    pairs = table[["source", "target"]].drop_duplicates()

    assert pairs.to_numpy().tolist() == [
        ["office31-dslr", "office31-webcam"],
        ["office31-webcam", "office31-dslr"],
    ]
    assert set(table["contender"]) == {
        *("f", "H", "H on scaled f", "H on [f, z]", "f's last layer, H's decay")
    }
    models = [each for each in store.artifacts("model") if each.is_complete()]
    assert {each.plan()["stage"]["params"]["train"] for each in models} == {"last-layer"}
    assert all(each.card()["n_train"] == 6 for each in models)


def test_table_10_has_the_accuracy_of_each_class(tmp_path: Path, weights: str) -> None:
    write(tmp_path / "visda2017" / "train", "png")
    write(tmp_path / "visda2017" / "validation", "jpg", COUNTS)
    store = FeatureStore(str(tmp_path / "store"))
    report = run_tiny(store, tmp_path, shipped_text("table-10"), {"weights": weights, **SMALL})
    table, page = outputs(store, report)
    by_class = next(each for each in report.statuses if each.instance.step == "by-class")
    cells = by_class.job.output.read_frame("by-group.parquet").query("predictor == 'f'")
    accuracy = table.query("contender == 'f' and metric == 'accuracy'").set_index("set")["mean"]

    assert cells["class"].tolist() == list(CLASSES["visda2017"])
    assert cells["n_rows"].tolist() == list(COUNTS)
    assert accuracy["mean over classes"] == pytest.approx(cells["accuracy"].mean())
    assert accuracy["all images"] == pytest.approx(np.average(cells["accuracy"], weights=COUNTS))
    assert "accuracy-by-class" in page
    assert by_class.job.output.card()["cells"]["columns"] == ["label"]
