"""The demo: every step of the chain on real handwriting, as commands that anyone can type."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cli.output import emit, note
from pipeline.errors import RunFailedError
from stages.errors import InputError

STEPS = (
    (
        "f senses: train a small network on 1,297 handwritten digits",
        "train-sensing --dataset digits --preset quick",
    ),
    (
        "make it hard: corrupt the 500 test digits in 19 ways at 5 severities",
        "corrupt --dataset digits",
    ),
    (
        "f reflects: features and logits of the training digits ...",
        "extract --dataset digits --split train",
    ),
    (
        "... and of all 47,500 corrupted ones",
        "extract --dataset digits-c",
    ),
    (
        "H introspects: train it on gradients made of the stored features",
        "train-head --features digits-train@cnn2 --epochs 60 --weight-decay 5e-4 --seeds 0,1,2",
    ),
    (
        "f against H on corrupted digits, from the store",
        "evaluate --features digits-c@cnn2",
    ),
    (
        "beside controls that see no gradient: the paper's Table 5, as a page with plots",
        "reproduce table-5 --set dataset=digits --set corrupted=digits-c --set networks=[cnn2] "
        "--set preset=quick --set epochs=20 --set head_epochs=60 --set head_weight_decay=5e-4",
    ),
    (
        "ask the store a question",
        "query digits-c@cnn2 --by corruption --metric accuracy --metric ece --where severity=5",
    ),
    (
        "check every byte that was written",
        "verify",
    ),
)


def run_demo(store: str, *, as_json: bool, dry_run: bool) -> None:
    """Run the steps one after the other, in a store of their own; a second time is a no-op.

    Raises ``RunFailedError`` where a step fails; its own message stands above. Raises
    ``InputError`` for a URL.
    """
    if "://" in store:
        raise InputError(f"--store {store}: the demo keeps its images there too, give a folder")
    folder = Path(store).absolute()
    places = {"INTRO_PIPE_STORE": str(folder), "INTRO_PIPE_DATA": str(folder / "data")}
    if dry_run:
        commands = [f"intro-pipe {step}" for _, step in STEPS]
        emit(commands, "\n".join([_export(places), *commands]), as_json=as_json)
        return
    (folder / "data").mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    results: dict[str, Any] = {}
    for number, (what, command) in enumerate(STEPS, start=1):
        note(f"\n[{number}/{len(STEPS)}] {what}\n$ intro-pipe {command}")
        results[command] = _run(command, places, as_json=as_json)
    seconds = time.monotonic() - started
    note(
        f"\nDone in {seconds:.0f} s. Everything lies in {folder}; go on with, for example:\n"
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
    ended = subprocess.run(
        words,
        env={**os.environ, **places},
        stdout=subprocess.PIPE if as_json else None,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise RunFailedError(f"the demo stopped: `intro-pipe {command}` failed, see above")
    return json.loads(ended.stdout) if as_json else None
