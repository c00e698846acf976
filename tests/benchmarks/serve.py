"""Load on ``recbole-kd serve`` over loopback: latency, memory and errors, beside the numpy lines of the bundle's README.

    python tests/benchmarks/serve.py --bundle=served                # 10,000 requests by 1 client, then by 16
    python tests/benchmarks/serve.py --bundle=served --workers=2

The clients are processes of their own on this machine, each with one connection that stays open. Times are the client's,
from the request's first byte to the answer's last. Memory is the proportional set size of the server's processes (shared
pages are divided among those that share them), after the requests.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np


def client(port: int, users: list[str], k: int) -> tuple[list[float], int]:
    """Seconds of each request, and how many failed."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.connect()
    times, errors = [], 0
    for user in users:
        start = time.perf_counter()
        try:
            connection.request("GET", "/recommend?" + urlencode({"user": user, "k": k}))
            answer = connection.getresponse()
            found = json.loads(answer.read())
            errors += answer.status != 200 or not found["items"]
        except OSError:
            errors += 1
        times.append(time.perf_counter() - start)
    return times, errors


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in below for one in tree(int(child)))]


def memory(pid: int) -> float:
    """Megabytes of a process and all below it, shared pages divided."""
    size = 0
    for one in tree(pid):
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{one}/smaps_rollup").read_text(), re.M)
        size += int(found[1]) if found else 0
    return size / 1000


def lines_alone(bundle: Path, users: list[str], k: int) -> list[float]:
    """Seconds of each call of ``recommend`` as the bundle's README has it, in this process."""
    block = re.findall(r"```python\n(.*?)```", (bundle / "README.md").read_text(encoding="utf-8"), re.S)[0]
    names: dict[str, Any] = {}
    before = Path.cwd()
    os.chdir(bundle)
    exec(block.replace("\nprint(", "\n#("), names)  # without its example
    os.chdir(before)
    times = []
    for user in users:
        start = time.perf_counter()
        names["recommend"](user, k)
        times.append(time.perf_counter() - start)
    return times


def told(name: str, times: list[float], rest: str) -> None:
    p50, p95, p99 = np.percentile(np.array(times) * 1000, [50, 95, 99])
    print(f"{name:<28}{p50:>9.2f}{p95:>9.2f}{p99:>9.2f}  {rest}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--k", type=int, default=20)
    given = parser.parse_args()
    ids = [json.loads(line) for line in (given.bundle / "users.jsonl").open(encoding="utf-8")]
    users = [ids[row] for row in np.random.default_rng(0).integers(len(ids), size=given.requests)]
    print(f"{given.bundle}: {given.requests:,} requests; load of the machine before: {os.getloadavg()[0]:.1f}")
    print(f"{'':<28}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}")
    told("numpy lines, no server", lines_alone(given.bundle.absolute(), users[:2000], given.k), "2,000 calls")
    words = ["serve", f"--bundle={given.bundle}", "--port=0", f"--workers={given.workers}"]
    start = time.perf_counter()
    server = subprocess.Popen([sys.executable, "-m", "recbole_kd.cli", *words], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        found = re.search(r":(\d+)/docs", "".join(server.stdout.readline() for _ in range(3)))
        assert found, "the server did not start"
        port = int(found[1])
        client(port, users[:1], given.k)
        print(f"first answer after {time.perf_counter() - start:.1f} s, {memory(server.pid):.0f} MB")
        for count in given.clients:
            parts = [users[number::count] for number in range(count)]
            start = time.perf_counter()
            with multiprocessing.Pool(count) as pool:
                answers = pool.starmap(client, [(port, part, given.k) for part in parts])
            rate = given.requests / (time.perf_counter() - start)
            errors = sum(errors for _, errors in answers)
            times = [one for times, _ in answers for one in times]
            name = f"{count} client{'s' if count > 1 else ''}, {given.workers} worker{'s' if given.workers > 1 else ''}"
            told(name, times, f"{rate:,.0f} a second, {errors} errors, {memory(server.pid):.0f} MB")
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


if __name__ == "__main__":
    main()
