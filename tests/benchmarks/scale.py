"""What sizes beyond this machine need: costs fitted to runs of load.py, held against another run, and carried further.

    for size in "1e4 1e4 2e5" "3e4 3e4 6e5" "1e5 1e4 2e6" "1e4 1e5 2e5"; do
        set -- $size
        python tests/benchmarks/load.py --users=$1 --items=$2 --interactions=$3 --output=small.jsonl
    done
    python tests/benchmarks/load.py --output=large.jsonl
    python tests/benchmarks/scale.py small.jsonl --against=large.jsonl

Each cost is a sum of a few terms (:data:`TERMS`) whose factors are not negative, fitted to the ratios of the measured
values (a large run weighs no more than a small one). U and I are users and items, n interactions, B pairs in a batch.
The sizes of the fit and of what it is held against are those that the files were found to have, not those asked for.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

#: Quantity of a line of load.py -> its terms, functions of the sizes.
TERMS: dict[tuple[str, str], tuple[str, ...]] = {
    ("load", "seconds"): ("1", "n", "U+I"),
    ("load", "peak_gb"): ("1", "n", "U+I"),
    ("rank bank", "ms_a_user"): ("I",),
    ("recommend", "seconds"): ("1", "n", "U+I", "RI"),
    ("rrd", "draw"): ("U",),
    **{(method, "build"): ("1", "n", "U+I") for method in ("plain", "rrd", "freqd", "simrec", "sevo")},
    **{(method, "step"): ("1", "B", "U+I") for method in ("plain", "rrd", "freqd", "simrec")},
    ("sevo", "step"): ("1", "B", "U+I", "n"),
    **{(method, "checkpoint_gb"): ("1", "U+I") for method in ("plain",)},
    **{(method, "peak_gb"): ("1", "n", "U+I") for method in ("plain", "rrd", "freqd", "simrec", "sevo")},
}


def runs_of(path: Path) -> list[dict[str, Any]]:
    """The runs of a file of load.py: sizes, and each line's values by (method, quantity)."""
    runs: list[dict[str, Any]] = []
    for line in path.read_text().splitlines():
        found = json.loads(line)
        if found["method"] == "load":
            runs.append({"sizes": found, "values": {}})
        if found["method"] == "recommend":
            runs[-1]["sizes"]["recommended"] = found["users"]
        runs[-1]["values"].update({(found["method"], key): value for key, value in found.items()})
    return runs


def terms_of(names: Iterable[str], sizes: Mapping[str, float]) -> list[float]:
    users, items, n = sizes["users"], sizes["items"], sizes["interactions"]
    known = {
        "1": 1.0,
        "n": n,
        "U": users,
        "I": items,
        "U+I": users + items,
        "B": sizes["batch"],
        "RI": min(sizes.get("recommended", 10_000), users) * items,
    }
    return [known[name] for name in names]


def fitted(runs: list[dict[str, Any]]) -> dict[tuple[str, str], Any]:
    """The factors of each quantity's terms."""
    factors = {}
    for quantity, names in TERMS.items():
        rows = [(terms_of(names, run["sizes"]), run["values"][quantity]) for run in runs if quantity in run["values"]]
        if not rows:
            continue
        matrix = np.array([terms for terms, _ in rows])
        values = np.array([value for _, value in rows])
        matrix = matrix / values[:, None]
        scale = matrix.max(axis=0)  # terms differ by ten orders of magnitude
        factors[quantity] = nnls(matrix / scale, np.ones(len(values)))[0] / scale
    return factors


def predicted(factors: Mapping[tuple[str, str], Any], quantity: tuple[str, str], sizes: Mapping[str, float]) -> float:
    return float(np.dot(factors[quantity], terms_of(TERMS[quantity], sizes)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("small", type=Path, help="lines of load.py that the costs are fitted to")
    parser.add_argument("--against", type=Path, help="lines of load.py that they are held against")
    parser.add_argument("--users", type=float, default=1e8)
    parser.add_argument("--items", type=float, default=1e7)
    parser.add_argument("--interactions", type=float, default=2e9)
    parser.add_argument("--batch", type=float, default=2e6)
    arguments = parser.parse_args()
    factors = fitted(runs_of(arguments.small))
    for quantity, values in factors.items():
        shown = " + ".join(f"{value:.3g} {name}" for value, name in zip(values, TERMS[quantity]) if value)
        print(f"{' '.join(quantity):24} {shown}")
    for run in runs_of(arguments.against) if arguments.against else ():
        sizes = run["sizes"]
        print(f"\n{sizes['users']:,} users, {sizes['items']:,} items, {sizes['interactions']:,} interactions")
        print(f"{'':24} {'predicted':>10} {'measured':>10} {'ratio':>6}")
        for quantity in factors:
            if quantity in run["values"]:
                guess, value = predicted(factors, quantity, sizes), run["values"][quantity]
                print(f"{' '.join(quantity):24} {guess:10.4g} {value:10.4g} {guess / value:6.2f}")
    sizes = {key: getattr(arguments, key) for key in ("users", "items", "interactions", "batch")}
    print("\n" + ", ".join(f"{key} {value:,.0f}" for key, value in sizes.items()))
    for quantity in factors:
        print(f"{' '.join(quantity):24} {predicted(factors, quantity, sizes):10.4g}")
    steps = arguments.interactions / arguments.batch
    for method in ("plain", "rrd", "freqd", "simrec", "sevo"):
        if (method, "step") in factors:
            hours = steps * predicted(factors, (method, "step"), sizes) / 3600
            print(f"{method + ' epoch':24} {hours:10.4g} core hours")


if __name__ == "__main__":
    main()
