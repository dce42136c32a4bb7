"""Measure BADGE's selection on factors against the same selection on dense gradients.

Run it from the repository: `python benchmarks/badge.py`. A pool of random features and the softmax
of a linear layer on them; each way runs in a process of its own, which says how much memory it took
at most, the interpreter and the pool included. The dense way writes all gradients out once and
takes one product with the last centre a draw, with norms kept. It draws only `--dense-queries` of
them: its draws are all alike, and `seconds` is for all of `--queries`. The ways take turns, and the
best of `--rounds` counts. Before that both must choose the same rows of a small pool.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import numpy as np
from numpy.typing import NDArray

from cli.output import emit, table
from stages.active_learning.strategies import Seen, badge

Numbers = NDArray[np.float32]


def pool(n_rows: int, width: int, n_classes: int) -> Seen:
    """Features in clusters, one per class, and the probabilities of a layer that separates them."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(n_classes, width)).astype(np.float32)
    noise = rng.standard_normal((n_rows, width), dtype=np.float32)
    features = np.maximum(0.3 * centres[rng.integers(0, n_classes, n_rows)] + noise, 0)
    logits = features @ centres.T * (10 / width)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return Seen(exponentials / exponentials.sum(axis=1, keepdims=True), features)


def dense_badge(gradients: Numbers, n: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """k-means++ on gradients that are written out, ``[rows, classes * width]``."""
    draws = generator.random(n)
    norms = np.einsum("nd,nd->n", gradients, gradients)
    nearest = np.full_like(norms, np.inf)
    rows = [int(norms.argmax())]
    for at in range(1, n + 1):
        gaps = norms + norms[rows[-1]] - 2 * (gradients @ gradients[rows[-1]])
        nearest = np.minimum(nearest, np.maximum(gaps, 0))
        nearest[rows[-1]] = 0
        if at < n:
            sums = np.cumsum(nearest, dtype=np.float64)
            rows.append(int(np.searchsorted(sums, draws[at] * sums[-1], side="right")))
    return np.array(rows)


def measured(seen: Seen, n: int, n_dense: int) -> dict[str, float]:
    """Seconds for ``n`` queries, and this process's peak of memory.

    On the factors where ``n_dense`` is 0, else dense: so many are drawn.
    """
    generator = np.random.default_rng(1)
    times = [time.perf_counter()]
    if n_dense:
        gradients = seen.gradients.dense()
        times.append(time.perf_counter())
        dense_badge(gradients, n_dense, generator)
    else:
        badge(seen, n, generator)
    times.append(time.perf_counter())
    seconds = times[1] - times[0]
    if n_dense:
        seconds += (times[2] - times[1]) * n / n_dense
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak_mb": peak / 1e6}


def alone(n_dense: int, n_threads: int, arguments: list[str]) -> dict[str, float]:
    """Run a measurement in a separate process."""
    command = [sys.executable, __file__, *arguments, "--alone", str(n_dense)]
    threads = {"OMP_NUM_THREADS": str(n_threads), "OPENBLAS_NUM_THREADS": str(n_threads)}
    environment = {**os.environ, **threads}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000, help="of the pool")
    parser.add_argument("--width", type=int, default=512, help="features of a row")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--dense-queries", type=int, default=50, help="0 leaves the dense way out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="cores to use")
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    size = (options.width, options.classes)
    if options.alone is not None:
        print(json.dumps(measured(pool(options.rows, *size), options.queries, options.alone)))
        return
    small = pool(500, *size)
    found = badge(small, 100, np.random.default_rng(2)).rows
    if options.dense_queries:
        dense = dense_badge(small.gradients.dense(), 100, np.random.default_rng(2))
        if not np.array_equal(found, dense):
            sys.exit("the two ways choose other rows of a small pool")
    ways = {"factors": 0, **({"dense": options.dense_queries} if options.dense_queries else {})}
    rounds = [
        {way: alone(n, options.threads, sys.argv[1:]) for way, n in ways.items()}
        for _ in range(options.rounds)
    ]
    rows: list[dict[str, object]] = []
    for way in ways:
        seconds = min(each[way]["seconds"] for each in rounds)
        peak = max(each[way]["peak_mb"] for each in rounds)
        factors = min(each["factors"]["seconds"] for each in rounds)
        rows.append({"way": way, "seconds": seconds, "peak_mb": peak, "times": seconds / factors})
    emit(rows, table(rows), as_json=options.json)


if __name__ == "__main__":
    main()
