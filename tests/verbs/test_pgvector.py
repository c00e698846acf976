"""docs/pgvector.py: a real PostgreSQL with pgvector gives the bundle's own lists."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_kd.files.bundle import read_bundle
from tests.files.test_bundle import write

SCRIPT = Path(__file__).parents[2] / "docs" / "pgvector.py"
#: Debian keeps the server's programs of each version in a folder of their own.
PROGRAMS = [path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
WITH_VECTOR = [
    one for one in PROGRAMS if Path(f"/usr/share/postgresql/{one.parent.name}/extension/vector.control").is_file()
]

Query = Callable[..., list[list[str]]]


@pytest.fixture(scope="module")
def query() -> Iterator[Query]:
    """Runs psql against a server of this test alone, which no network reaches."""
    if not WITH_VECTOR:
        pytest.skip("there is no PostgreSQL server with pgvector here (Debian: apt-get install postgresql-17-pgvector)")
    as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []  # the server refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path is at most about 100 letters long
    if as_user:
        shutil.chown(folder, "postgres")
    server = WITH_VECTOR[-1]

    def run(*words: Any, **more: Any) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*as_user, *map(str, words)], cwd="/", capture_output=True, text=True, check=False, **more
        )
        assert done.returncode == 0, done.stderr
        return done

    def psql(*words: str, **more: Any) -> list[list[str]]:
        options = ("-h", folder, "-U", "postgres", "-X", "-q", "-A", "-t", "-F", "\t", "--set=ON_ERROR_STOP=1")
        lines = run(server / "psql", *options, *words, **more).stdout.splitlines()
        return [line.split("\t") for line in lines]

    try:
        run(server / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        settings = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        run(server / "pg_ctl", "-D", folder / "data", "-w", "-l", folder / "log", "-o", settings, "start")
        try:
            yield psql
        finally:
            run(server / "pg_ctl", "-D", folder / "data", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sql_of(*words: Any) -> str:
    """What the script writes, in an interpreter that has the standard library alone."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", SCRIPT, *words], capture_output=True, text=True, encoding="utf-8", check=True
    )
    return done.stdout


def bundle_of(folder: Path, dtype: Any, ids: list[str]) -> Path:
    """40 items of 8 numbers; the ids of the two users are given."""
    generator = np.random.default_rng(5)
    tensors: dict[str, Any] = {}
    for name, count in (("users", 2), ("items", 40)):
        table = generator.normal(size=(count, 8))
        if dtype is np.int8:
            tensors[f"{name}_scale"] = (np.abs(table).max(axis=1) / 127).astype(np.float32)
            table = (table / tensors[f"{name}_scale"][:, None]).round()
        tensors[name] = table.astype(dtype)
    seen = {"offsets": np.array([0, 3, 3]), "items": np.array([1, 2, 30])}
    lines = {"users": ids, "items": [f"i{item}" for item in range(40)]}
    return write(folder, tensors, seen, format="recbole-kd-export/2", kind="vectors", items=40, ids=lines)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_the_database_gives_the_bundles_lists(dtype: Any, query: Query, tmp_path: Path) -> None:
    """The second time the schema is replaced; ids are taken as they are, whatever letters they have."""
    ids = ["Zoë\t\\N, 'x' $$\n\\.", "u2"]
    folder = bundle_of(tmp_path / "bundle", dtype, ids)
    query(input=sql_of(folder, 'a "name"'))
    query(input=sql_of(folder, 'a "name"'))
    bundle, schema = read_bundle(folder), '"a ""name"""'
    for row, user in enumerate(ids):
        given = user.replace("'", "''")
        found = query("-c", f"SELECT id, score FROM {schema}.recommend('{given}', 20)")
        expected = bundle.recommend(row, 20)
        assert [item for item, _ in found] == [bundle.items[item] for item, _ in expected]
        np.testing.assert_allclose(
            [float(score) for _, score in found], [score for _, score in expected], rtol=1e-4, atol=1e-5
        )


def test_an_unknown_user_gets_nothing(query: Query, tmp_path: Path) -> None:
    query(input=sql_of(bundle_of(tmp_path / "bundle", np.float32, ["u1", "u2"])))
    assert query("-c", "SELECT * FROM recbole_kd.recommend('nobody')") == []


def test_a_student_of_another_kind_is_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"kind": "pairs"}')
    with pytest.raises(subprocess.CalledProcessError) as raised:
        sql_of(tmp_path)
    assert raised.value.stdout == ""
    assert "is of the kind pairs; only" in raised.value.stderr


def test_a_folder_that_is_no_bundle_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as raised:
        sql_of(tmp_path)
    assert raised.value.stderr.splitlines() == [
        f"{tmp_path} is no folder that recbole-kd export wrote: it has no manifest.json."
    ]
