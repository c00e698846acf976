"""An exported student in PostgreSQL with pgvector. Python's standard library is enough.

    python pgvector.py FOLDER [SCHEMA] | psql --set=ON_ERROR_STOP=1 DATABASE
    psql DATABASE -c "SELECT * FROM recbole_kd.recommend('196', 20)"

Writes SQL that loads a bundle of `recbole-kd export` in one transaction: tables `users`, `items` and `seen`, and a
function `recommend(id, k)`. The schema (by default recbole_kd) is replaced where it exists; give one that holds
nothing else.
"""

import array
import json
import struct
import sys
from pathlib import Path

SIZES = {"F32": 4, "F16": 2, "I8": 1, "I64": 8}


def tensors(path):
    """Name -> (shape, type, bytes) of a safetensors file."""
    data = memoryview(path.read_bytes())
    (size,) = struct.unpack("<Q", data[:8])
    entries = json.loads(bytes(data[8 : 8 + size]))
    entries.pop("__metadata__", None)
    body = data[8 + size :]
    return {name: (one["shape"], one["dtype"], body[slice(*one["data_offsets"])]) for name, one in entries.items()}


def numbers(kind, part):
    """A part of a tensor as numbers."""
    if kind == "F16":
        return struct.unpack(f"<{len(part) // 2}e", part)
    values = array.array({"F32": "f", "I8": "b", "I64": "q"}[kind], bytes(part))
    if sys.byteorder == "big":
        values.byteswap()
    return values


def rows(found, name):
    """Each vector of a table as text that pgvector reads; the shortest that gives the same float32."""
    (count, dimension), kind, data = found[name]
    scale = numbers("F32", found[f"{name}_scale"][2]) if f"{name}_scale" in found else [1.0] * count
    width = dimension * SIZES[kind]
    for row in range(count):
        values = numbers(kind, data[row * width : (row + 1) * width])
        yield "[" + ",".join(f"{value * scale[row]:.9g}" for value in values) + "]"


def text(token):
    """An id as COPY reads it."""
    if "\0" in token:
        sys.exit(f"PostgreSQL holds no text with a NUL character: {token!r}")
    for letter, escaped in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        token = token.replace(letter, escaped)
    return token


def statements(folder, schema):
    """The SQL, piece by piece."""
    folder = Path(folder)
    name = '"' + schema.replace('"', '""') + '"'
    if not (folder / "manifest.json").is_file():
        sys.exit(f"{folder} is no folder that recbole-kd export wrote: it has no manifest.json.")
    kind = json.loads((folder / "manifest.json").read_text(encoding="utf-8")).get("kind", "vectors")
    if kind != "vectors":
        sys.exit(f"{folder} is of the kind {kind}; only vectors of users and items can be loaded.")
    found = tensors(folder / "vectors.safetensors")
    dimension = found["items"][0][1]
    yield f"""SET client_encoding = 'UTF8';
BEGIN;
CREATE EXTENSION IF NOT EXISTS vector;
DROP SCHEMA IF EXISTS {name} CASCADE;
CREATE SCHEMA {name};
CREATE TABLE {name}.users (row int PRIMARY KEY, id text UNIQUE NOT NULL, vector vector({dimension}) NOT NULL);
CREATE TABLE {name}.items (row int PRIMARY KEY, id text UNIQUE NOT NULL, vector vector({dimension}) NOT NULL);
CREATE TABLE {name}.seen (user_row int, item_row int, PRIMARY KEY (user_row, item_row));
"""
    for table in ("users", "items"):
        yield f"COPY {name}.{table} (row, id, vector) FROM stdin;\n"
        with open(folder / f"{table}.jsonl", encoding="utf-8") as ids:
            for row, (line, vector) in enumerate(zip(ids, rows(found, table))):
                yield f"{row}\t{text(json.loads(line))}\t{vector}\n"
        yield "\\.\n"
    seen = tensors(folder / "seen.safetensors")
    offsets, items = (numbers("I64", seen[part][2]) for part in ("offsets", "items"))
    yield f"COPY {name}.seen (user_row, item_row) FROM stdin;\n"
    for row in range(len(offsets) - 1):
        for item in sorted(set(items[offsets[row] : offsets[row + 1]])):
            yield f"{row}\t{item}\n"
    yield "\\.\n"
    # pgvector's <#> is the negative inner product, since an index of PostgreSQL sorts upwards only.
    yield f"""CREATE FUNCTION {name}.recommend(who text, k int DEFAULT 20)
RETURNS TABLE (id text, score double precision) LANGUAGE sql STABLE AS $$
    SELECT i.id, -(i.vector <#> u.vector) AS score
    FROM {name}.users u, {name}.items i
    WHERE u.id = who AND NOT EXISTS (SELECT FROM {name}.seen s WHERE s.user_row = u.row AND s.item_row = i.row)
    ORDER BY i.vector <#> u.vector, i.row
    LIMIT k
$$;
COMMIT;
ANALYZE {name}.users, {name}.items, {name}.seen;
"""


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    sys.stdout.reconfigure(encoding="utf-8")
    try:
        for piece in statements(*[*sys.argv[1:], "recbole_kd"][:2]):
            sys.stdout.write(piece)
        sys.stdout.flush()
    except OSError as error:
        sys.exit(f"The SQL could not be written: {error.strerror}.")
