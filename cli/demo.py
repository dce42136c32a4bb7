"""The demo: every step of the pipeline on handwritten digits, as commands to type."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from cli.child import CAPTURED, run_child
from cli.output import emit, note
from pipeline.errors import RunFailedError
from stages.errors import InputError

STEPS = (
    (
        "train a small sensing network f on 1,297 handwritten digits",
        "train-sensing --dataset digits --preset quick",
    ),
    (
        "corrupt the 500 test digits in 19 ways at 5 severities",
        "corrupt --dataset digits",
    ),
    (
        "extract features and logits of the training digits ...",
        "extract --dataset digits --split train",
    ),
    (
        "... and of all 47,500 corrupted ones",
        "extract --dataset digits-c",
    ),
    (
        "train an introspective head H on gradients computed from the stored features",
        "train-head --features digits-train@cnn2 --epochs 60 --weight-decay 5e-4 --seeds 0,1,2",
    ),
    (
        "evaluate f and H on corrupted digits, from the store",
        "evaluate --features digits-c@cnn2 --head H=cnn2-h",
    ),
    (
        "compare with controls that use no gradient: Table 5 of the paper, as a page with plots",
        "reproduce table-5 --set dataset=digits --set corrupted=digits-c --set networks=[cnn2] "
        "--set preset=quick --set epochs=20 --set head_epochs=60 --set head_weight_decay=5e-4",
    ),
    (
        "query the store",
        "query digits-c@cnn2 --by corruption --metric accuracy --metric ece --where severity=5",
    ),
    (
        "verify every file against its checksum",
        "verify",
    ),
    (
        "explain the corrupted digits on which f and H disagree and f is most sure ...",
        "explain --features digits-c@cnn2 --head cnn2-h --disagree --top 24 --order highest "
        "--contrast top-3 --name disagree",
    ),
    (
        "... on a page: why P, what if not P, and why P rather than Q",
        "draw-maps --maps disagree --name explained",
    ),
)


def run_demo(store: str, *, as_json: bool, dry_run: bool) -> None:
    """Run the steps one after the other in their own store; a second run computes nothing.

    Raises:
        RunFailedError: a step failed; it has printed its own message.
        InputError: the store is a URL.
    """
    if "://" in store:
        raise InputError(
            f"--store {store}: expected a folder, since the demo also keeps its images there"
        )
    folder = Path(store).absolute()
    places = {"INTRO_PIPE_STORE": str(folder), "INTRO_PIPE_DATA": str(folder / "data")}
    if dry_run:
        commands = [f"intro-pipe {step}" for _, step in STEPS]
        emit(commands, "\n".join([_export(places), *commands]), as_json=as_json)
        return
    (folder / "data").mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    results: dict[str, Any] = {}
    for number, (title, command) in enumerate(STEPS, start=1):
        note(f"\n[{number}/{len(STEPS)}] {title}\n$ intro-pipe {command}")
        results[command] = _run(command, places, as_json=as_json)
    seconds = time.monotonic() - started
    note(
        f"\nDone in {seconds:.0f} s. The results are in {folder}. To continue, for example:\n"
        f"  {_export(places)}\n"
        "  intro-pipe ls\n"
        "  intro-pipe query digits-c@cnn2 --by severity --metric accuracy --metric brier"
    )
    if as_json:
        emit({"seconds": seconds, "store": str(folder), "steps": results}, "", as_json=True)


def _export(places: dict[str, str]) -> str:
    return "export " + " ".join(f"{key}={shlex.quote(value)}" for key, value in places.items())


def _run(command: str, places: dict[str, str], *, as_json: bool) -> Any:  # Any: JSON
    words = [sys.executable, "-P", "-m", "cli.app", *shlex.split(command), *(["--json"] * as_json)]
    ended = run_child(words, {**os.environ, **places}, CAPTURED if as_json else None)
    if ended.returncode:
        raise RunFailedError(f"the demo stopped: `intro-pipe {command}` failed, see above")
    return json.loads(ended.stdout) if as_json else None
