"""Seeded mutations that know the structure of what they damage: JSON, safetensors, archives, text.

Each takes the bytes of a valid file and a `random.Random`, and returns other bytes and a word on what was done.
"""

from __future__ import annotations

import copy
import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import pyarrow as pa
import yaml

__all__ = ["ODD", "Mutation", "archive", "arrow", "json_document", "json_lines", "raw", "safetensors_file", "text",
           "yaml_document"]  # fmt: skip

Mutation = Callable[[bytes, Random], tuple[bytes, str]]


def _deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**63, -(2**63) - 1, 10**12, 10**30, 10**400, 0.0, 0.5, -0.5, 1e-320,
    1e308, -1e308, float("nan"), float("inf"), -float("inf"), "", "0", "1", "x", "a/b", "../../etc/passwd", "/etc",
    "~nosuchuser", "~", "..", ".", "\0", "a\0b", "\ud800", "\u202e", "\x1b[31m", "<script>", "é" * 300, "x" * 5000,
    "float16", "float8_e4m3fn", "int64", "nan", [], [None], [[]], [0], [1, 2], [0, 1, 2], ["a"], ["a", "b"], [[0, 0]],
    [[0, 0, 1.0]], [float("nan")], {}, {"a": 1}, {"": None}, {"model_type": "evil"}, {"__class__": "x"}, _deep(40),
)  # fmt: skip
_SHAPES: tuple[Any, ...] = ([], [0], [1], [-1], [2**40], [2**62, 4], [0, 2**40], [1, 1, 1, 1], ["3"], 3, None, [1.5])
_DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "U8", "BOOL", "U64", "F4", "C64", "X", 3)


def raw(content: bytes, random: Random) -> tuple[bytes, str]:
    """Damage bytes: cut, flip, insert, repeat, swap."""
    data = bytearray(content)
    kind = random.choice(("cut", "flip", "flips", "insert", "repeat", "drop", "zero", "empty", "other"))
    place = random.randrange(len(data) + 1) if data else 0
    if kind == "cut":
        del data[place:]
    elif kind in ("flip", "flips") and data:
        for _ in range(1 if kind == "flip" else random.randrange(2, 40)):
            data[random.randrange(len(data))] = random.randrange(256)
    elif kind == "insert":
        data[place:place] = random.choice(
            (b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"NaN", b"{", b"]" * 5, b"\n", b'"', b"9" * 50, b"\xef\xbb\xbf")
        )
    elif kind == "repeat":
        data = data * random.randrange(2, 4)
    elif kind == "drop" and data:
        del data[place : place + random.randrange(1, 30)]
    elif kind == "zero" and data:
        data[place : place + 8] = bytes(len(data[place : place + 8]))
    elif kind == "empty":
        data = bytearray()
    else:
        data = bytearray(
            random.choice((b"\x80\x04K\x01.", b"PK\x03\x04", b"null", b"[]", b"{}", b"0", b"\n\n", b"[" * 3000))
        )
    return bytes(data), kind


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [place]
    entries: Any = (
        value.items() if isinstance(value, dict) else enumerate(value[:20]) if isinstance(value, list) else ()
    )
    for key, entry in entries:
        found += _places(entry, (*place, key))
    return found


def _changed(document: Any, random: Random) -> tuple[Any, str]:
    """Return a JSON value with one thing in it changed."""
    # Places near the top as often as the many far below.
    places = _places(document)
    depth = random.choice(sorted({len(place) for place in places}))
    place = random.choice([one for one in places if len(one) == depth])
    document = copy.deepcopy(document)
    if not place:
        return random.choice(ODD), "the whole"
    parent = document
    for key in place[:-1]:
        parent = parent[key]
    key, where = place[-1], ".".join(map(str, place))
    kind = random.choice(("odd", "odd", "odd", "near", "near", "delete", "double", "key", "wrap", "swap"))
    old = parent[key]
    if kind == "odd":
        parent[key] = copy.deepcopy(random.choice(ODD))
        return document, f"{where} = {_said(parent[key])}"
    if kind == "near":
        parent[key] = _near(old, random)
        return document, f"{where} = {_said(parent[key])}, near"
    if kind == "delete":
        del parent[key]
    elif kind == "wrap":
        parent[key] = random.choice(([old], {"a": old}, json.dumps(old)))
    elif kind == "swap":
        other = random.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        parent[key], parent[other] = parent[other], parent[key]
    elif isinstance(parent, dict):
        name = key + "_" if kind == "double" else random.choice(("", "\0", "x", "\ud800", "__class__", "auto_map"))
        parent[name] = copy.deepcopy(old)
        if kind == "key":
            parent.pop(key, None) if name != key else None
    else:
        parent.insert(key, copy.deepcopy(old))
    return document, f"{kind} {where}"


def _said(value: Any) -> str:
    """Return the beginning of a value as it stands in the file: the text `"1"` is not the number `1`."""
    return json.dumps(value, default=str)[:40]


def _near(value: Any, random: Random) -> Any:
    """Return a value of the same type, a little off."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        small = float(value) if abs(value) < 10**300 else value
        return random.choice((value + 1, value - 1, -value, value * 2, small, str(value), value * 10**9))
    if isinstance(value, float):
        return random.choice((value * 1.01, -value, value * 1e300, 1 - value, int(value) if abs(value) < 1e9 else 0))
    if isinstance(value, str):
        return random.choice((value + "x", value[:-1], value.upper(), value + "\0", value + "\ud800", "", value * 50))
    if isinstance(value, list):
        return random.choice((value[:-1], value + value[:1], value[::-1], sorted(value, key=str), value * 3))
    return random.choice(({}, [], None))


def _dumped(document: Any, random: Random) -> bytes:
    ascii_only = random.random() < 0.8
    written = json.dumps(document, ensure_ascii=ascii_only, default=str)
    return written.encode(errors="surrogatepass")


def json_document(content: bytes, random: Random) -> tuple[bytes, str]:
    """Damage a JSON document: its bytes sometimes, else one to three of its values."""
    if random.random() < 0.12:
        return raw(content, random)
    document, done = json.loads(content), []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        document, what = _changed(document, random)
        done.append(what)
    data = _dumped(document, random)
    if random.random() < 0.03:  # a key twice
        data = data.replace(b'{"', b'{"name": 1, "name": 2, "', 1)
        done.append("a key twice")
    return data, "; ".join(done)


def json_lines(content: bytes, random: Random) -> tuple[bytes, str]:
    """Damage one line of JSON lines, or the bytes."""
    if random.random() < 0.2:
        return raw(content, random)
    lines = content.split(b"\n")
    place = random.randrange(len(lines))
    if lines[place].strip():
        lines[place], what = json_document(lines[place], random)
        return b"\n".join(lines), f"line {place + 1}: {what}"
    return raw(content, random)


def text(content: bytes, random: Random) -> tuple[bytes, str]:
    """Damage text: its bytes, or separators, quotes and breaks."""
    if random.random() < 0.5:
        return raw(content, random)
    data = content.decode()
    old = random.choice((",", "\n", '"', "\t", "prompt", "class", "a"))
    new = random.choice(("", ",", '"', '""', "\n", "\r", "\0", "\u2028", "x" * 3000, "=cmd()", "\t\t"))
    return data.replace(old, new, random.randrange(1, 4)).encode(), f"{old!r} becomes {new!r}"[:60]


def safetensors_file(content: bytes, random: Random) -> tuple[bytes, str]:
    """Damage a safetensors file: bytes, header, metadata, values, or dtypes and shapes with values that fit them."""
    kind = random.choice(
        ("raw", "header", "metadata", "metadata", "metadata", "values", "values", "fit", "fit", "drop")
    )
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    names = [name for name in header if name != "__metadata__"]
    if kind == "raw":
        damaged, what = raw(content, random)
        return damaged, f"raw {what}"
    if kind == "metadata" and "hf_mote" in header.get("__metadata__", {}):
        document, what = json_document(header["__metadata__"]["hf_mote"].encode(), random)
        header["__metadata__"]["hf_mote"] = document.decode(errors="replace")
        return _joined(header, data), f"metadata: {what}"
    if kind == "header" or not names:
        name = random.choice([*header])
        if name != "__metadata__" and random.random() < 0.6:
            key = random.choice(("shape", "dtype", "data_offsets"))
            header[name][key] = random.choice(
                {"shape": _SHAPES, "dtype": _DTYPES}.get(key, ([0, 2**50], [5, 1], [0], None))
            )
            return _joined(header, data), f"{name}.{key} = {_said(header[name][key])}"
        header, what = _changed(header, random)
        return _joined(header, data), f"header: {what}"
    name = random.choice(names)
    first, last = header[name]["data_offsets"]
    dtype = header[name]["dtype"]
    if kind == "values" and last > first:
        size = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}.get(dtype, 1)
        value = _packed(dtype, random)
        count = random.choice((1, 1, (last - first) // size))
        start = first + size * random.randrange(max((last - first) // size - count, 0) + 1)
        data[start : start + size * count] = (value * count)[: size * count]
        return _joined(header, data), f"{count} of {name} {dtype} = {value.hex()}"
    tensors = {
        one: (header[one]["dtype"], header[one]["shape"], bytes(data[slice(*header[one]["data_offsets"])]))
        for one in names
    }
    if kind == "drop":
        other = random.choice(("\0", "x", "layers", "W_dec", "\u202e"))
        old = tensors.pop(name)
        if random.random() < 0.5:
            tensors[other] = old
        return _built(tensors, header.get("__metadata__")), f"without {name}"
    old_dtype, shape, values = tensors[name]
    change = random.choice(("dtype", "longer", "shorter", "rank", "empty"))
    if change == "dtype":
        new = random.choice(("F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "I32", "U8", "BOOL", "U64"))
        size = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}.get(new, 1)
        count = 1
        for side in shape:
            count *= side
        # Ones of the new type where that is easy, else whatever the bits mean.
        one = {"F64": struct.pack("<d", 1), "F32": struct.pack("<f", 1), "I64": struct.pack("<q", 1)}.get(
            new, bytes(size)
        )
        tensors[name] = (new, shape, one * count)
    elif change == "rank":
        tensors[name] = (old_dtype, random.choice(([1, *shape], [*shape, 1])), values)
    elif change == "empty":
        tensors[name] = (old_dtype, [0, *shape[1:]], b"")
    elif shape and shape[0]:
        row = len(values) // shape[0]
        less = change == "shorter"
        tensors[name] = (
            old_dtype,
            [shape[0] + (-1 if less else 1), *shape[1:]],
            values[:-row] if less else values + values[:row],
        )
    return _built(tensors, header.get("__metadata__")), f"{change} of {name} is {tensors[name][:2]}"


def _packed(dtype: str, random: Random) -> bytes:
    value = random.choice(
        (float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 0.5, 1e30, 1e-30, 3.0, -1e300, 2.0**60)
    )
    if dtype in ("I64", "I32"):
        whole = random.choice((-1, 0, 1, 2**31 - 1, -(2**31), 7, 1000))
        return struct.pack("<q" if dtype == "I64" else "<i", whole)
    if dtype == "F64":
        return struct.pack("<d", value)
    try:
        return (
            struct.pack("<f", value) if dtype == "F32" else struct.pack("<e", value) if dtype == "F16" else b"\xff\x7f"
        )
    except OverflowError:
        return b"\0\0\x80\x7f" if dtype == "F32" else b"\0\x7c"


def _joined(header: Any, data: bytes) -> bytes:
    written = json.dumps(header, default=str).encode(errors="surrogatepass")
    return struct.pack("<Q", len(written)) + written + bytes(data)


def _built(tensors: dict[str, tuple[str, Any, bytes]], metadata: Any) -> bytes:
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    place = 0
    for name, (dtype, shape, values) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + len(values)]}
        place += len(values)
    return _joined(header, b"".join(values for *_, values in tensors.values()))


def archive(content: bytes, random: Random) -> tuple[bytes, str]:
    """Damage a zip archive (npz, ae.pt): bytes, or the content, name and compression of one entry."""
    if random.random() < 0.25:
        damaged, what = raw(content, random)
        return damaged, f"raw {what}"
    with zipfile.ZipFile(io.BytesIO(content)) as given:
        entries = {name: given.read(name) for name in given.namelist()}
    name = random.choice([*entries])
    kind = random.choice(("content", "content", "header", "header", "drop", "double", "name", "bomb", "compress"))
    compression, names = zipfile.ZIP_STORED, dict.fromkeys(entries)
    old = entries[name]
    what = f"{kind} of {name}"
    if kind == "content":
        entries[name], how = raw(old, random)
        what += f": {how}"
    elif kind == "header":
        # The header of an array, or a pickle: a few bytes in its first part.
        head = bytearray(old[:200])
        for _ in range(random.choice((1, 1, 2, 5))):
            if head:
                head[random.randrange(len(head))] = random.choice((random.randrange(256), *b"0123456789()',{}\n"))
        entries[name] = bytes(head) + old[200:]
    elif kind == "drop":
        del names[name]
    elif kind == "name":
        del names[name]
        entries[other := random.choice(("x", "../x.npy", "W_enc.npy", "a\u202e.npy", "/x", "é.npy"))] = old
        names[other] = None
    elif kind == "bomb":
        entries[name] = old + bytes(random.choice((10**5, 10**6, 10**6, 10**8)))
        compression = zipfile.ZIP_DEFLATED
    elif kind == "compress":
        compression = random.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compression) as made:
        warnings.simplefilter("ignore")
        for one in [*names, *([name] if kind == "double" else [])]:
            made.writestr(one, entries[one])
    return file.getvalue(), what


_YAML = (
    "a: &a [1, 1]\nb: [*a, *a]\n", "x: !!python/object/apply:os.system ['true']\n", "? [a]\n: 1\n", "<<: {a: 1}\n",
    "k: 2024-13-45\n", "k: 2024-01-01\n", "k: 0b2\n", "k: 1_000\n", "k: .nan\n", "k: !!binary aGk=\n",
    "k: !!set {a}\n",
    "k: 1:30:00\n", "k: yes\n", "--- 1\n--- 2\n", "k: !!float x\n", "\tk: 1\n", "k: |\n  x\n", "k: '\\ud800'\n",
    "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 1}]\n" for n in range(9)), "a: " + "[" * 500,
    "k: 0o9\n", "k: 99999999-01-01 00:00:00\n", "k: !!timestamp x\n", "k: !!omap [a]\n", "k: 0x\n", "12: 1\n",
)  # fmt: skip


def yaml_document(content: bytes, random: Random) -> tuple[bytes, str]:
    """Damage a YAML document: as JSON, which is YAML, or by something that only YAML has."""
    kind = random.random()
    if kind < 0.15:
        return raw(content, random)
    if kind < 0.35:
        added = random.choice(_YAML)
        place = random.choice((b"", content))
        return place + added.encode(), f"with {added[:40]!r}"
    return json_document(json.dumps(yaml.safe_load(content)).encode(), random)


_TYPES = (pa.int64(), pa.float64(), pa.float16(), pa.string(), pa.uint16(), pa.bool_(), pa.null(), pa.large_binary())


def arrow(content: bytes, random: Random) -> tuple[bytes, str]:
    """Damage an Arrow stream: bytes, or what its schema says, or a column's type, width, length or values."""
    if random.random() < 0.3:
        return raw(content, random)
    with pa.ipc.open_stream(content) as reader:
        table = reader.read_all()
    metadata = dict(table.schema.metadata or {})
    kind = random.choice(("metadata", "metadata", "type", "width", "values", "values", "rows", "drop", "name", "null"))
    name = random.choice(table.column_names)
    column = table.column(name).combine_chunks()
    width = column.type.list_size
    flat = column.flatten()
    what = f"{kind} of {name}"
    if kind == "metadata" and metadata:
        key = random.choice([*metadata])
        metadata[key], how = json_document(metadata[key], random)
        what += f": {how}"
    elif kind == "type":
        wanted = random.choice(_TYPES)
        made = pa.nulls(len(flat), wanted) if random.random() < 0.3 else _of_type(flat, wanted)
        column = made if random.random() < 0.5 else pa.FixedSizeListArray.from_arrays(made, width)
        what += f" is {column.type}"
    elif kind == "width":
        other = random.choice([side for side in (1, 2, 3, width // 2, width * 2) if side and not len(flat) % side])
        column = pa.FixedSizeListArray.from_arrays(flat, other)
        what += f" is {other}"
    elif kind == "values":
        values = flat.to_numpy(zero_copy_only=False).copy()
        number = random.choice((1, len(values)))
        odd = random.choice((float("nan"), float("inf"), 0, 3, 1e30, -1))
        values[:number] = values.dtype.type(odd) if values.dtype.kind == "f" else 7
        column = pa.FixedSizeListArray.from_arrays(pa.array(values), width)
        what += f": {number} = {odd}"
    elif kind == "rows":
        table = random.choice((table.slice(0, 0), table.slice(0, 1), table.slice(1), pa.concat_tables([table] * 2)))
        column = table.column(name)
    elif kind == "null":
        column = pa.array([None, *column.to_pylist()[1:]], column.type)
    place = table.column_names.index(name)
    if kind == "drop":
        table = table.remove_column(place)
    elif kind == "name":
        table = table.append_column(random.choice(("", "x", "\0", name)), column)
    else:
        if len(column) != len(table):
            table = pa.table({name: column}) if len(table.column_names) == 1 else table.remove_column(place)
            place = min(place, len(table.column_names) - 1)
        if name in table.column_names:
            table = table.set_column(place, name, column)
    file = io.BytesIO()
    table = table.replace_schema_metadata(metadata)
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue(), what


def _of_type(values: pa.Array, wanted: pa.DataType) -> pa.Array:
    try:
        return values.cast(wanted, safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.nulls(len(values), wanted)
