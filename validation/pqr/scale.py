"""Deep PQR on long tables: 10 million rows x 20 features x 3 choices from Parquet, time and memory.

``python validation/pqr/scale.py [--members 200000]``: writes the rows to a temporary folder, fits
in a process of its own, and prints seconds and the largest resident memory (pages of the sorted
file among them).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CHOICES = ["out", "in", "more"]
PERIODS, FEATURES, PART = 50, 20, 20_000
FIT = """
import resource, sys, time
began = time.perf_counter()
import pandas as pd
import dynchoice as dc

attributes = pd.DataFrame({"choice": ["out", "in", "more"], "member": [0, 1, 1], "plus": [0, 0, 1]})
model = dc.RewardModel(
    ["out", "in", "more"], beta=0.95, anchor="out", attributes=attributes,
    features="0 + member + member:x0 + member:x1 + plus + plus:x3",
)
rows = dc.Trajectories(
    sys.argv[1] + "/*.parquet", member="id", time="t", choice="plan",
    features=[f"x{i}" for i in range(20)], choices=["out", "in", "more"], memory="1GB",
)
read = time.perf_counter() - began
fit = dc.DeepPQR(model, rows).fit(strict=True)
print(fit.summary())
total, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(f"{len(rows.x):,} rows: read {read:.0f} s, all {total:.0f} s, at most {peak:.2f} GB resident")
"""


def write(folder: Path, members: int) -> None:
    """Write members whose features follow an AR(1) that plans shift."""
    rng = np.random.default_rng(0)
    slope = np.zeros((3, FEATURES))
    slope[1, :5], slope[2, 3:9] = 0.3, -0.25
    for part in range(0, members, PART):
        number = min(PART, members - part)
        s = rng.normal(size=(number, FEATURES))
        states, choices = [], []
        for _ in range(PERIODS):
            v = s @ slope.T + np.array([0, 0.3, -0.2])
            v[:, 1] += 0.1 * s[:, 0] ** 2
            a = (v + rng.gumbel(size=v.shape)).argmax(axis=1)
            states.append(s)
            choices.append(a)
            s = 0.7 * s + 0.7 * rng.normal(size=s.shape)
            s[:, :3] += 0.2 * (a == 1)[:, None]
            s[:, 3:6] += 0.2 * (a == 2)[:, None]
        x = np.concatenate(states)
        table = {f"x{i}": x[:, i] for i in range(FEATURES)}
        table["id"] = np.tile(np.arange(part, part + number), PERIODS)
        table["t"] = np.repeat(np.arange(PERIODS), number)
        table["plan"] = pa.array(np.array(CHOICES)[np.concatenate(choices)])
        pq.write_table(pa.table(table), folder / f"rows{part}.parquet")


def main() -> None:
    """Write, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=200_000)
    members = parser.parse_args().members
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), members)
        subprocess.run([sys.executable, "-c", FIT, folder], check=True)


if __name__ == "__main__":
    main()
