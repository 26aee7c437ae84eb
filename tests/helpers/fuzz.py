"""Damaged files: every reader gives a result or one sentence, within a gibibyte and half a minute.

    python tests/helpers/fuzz.py FILES [--seed S] [--processes P] [--readers NAME,...]

Files are mutated by bytes, by numbers, and by values of JSON, from what our own writers make. Each reader has a
process of its own, and a row in the table that is printed. The exit code is 1 for any fault.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import random
import re
import resource
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from corrflow.errors import InputError

LIMIT_SECONDS, LIMIT_BYTES = 30.0, 1 << 30

_NUMBERS = ("0", "-1", "1e308", "nan", "inf", "99999999999", "4294967296", "0.5", "", "255", "-0.0", "1" * 400)
_VALUES: tuple[Any, ...] = (None, True, -1, 0, 10**12, 1e308, "", "text", [], {}, [[]], [None], {"a": [1]}, "9" * 50)


class Outcome(NamedTuple):
    """What damaged files did to a reader. `peak` is in bytes, of the whole process with its libraries."""

    reader: str
    files: int
    read: int
    faults: list[str]
    slowest: float
    seconds: float
    peak: int


def mutations(content: bytes, dice: random.Random) -> Iterator[bytes]:
    """Yield damaged copies of a file's content without end."""
    within = next((damage for begin, damage in _WITHIN.items() if content.startswith(begin)), None)
    for number in itertools.count():
        kind = number % (4 if within else 3)
        places = list(re.finditer(rb"-?[0-9]+(\.[0-9]+)?", content[: 1 << 16])) if kind == 2 else []
        if kind == 3 and within:
            yield within(content, dice)
        elif places:
            place = dice.choice(places)
            yield content[: place.start()] + dice.choice(_NUMBERS).encode() + content[place.end() :]
        else:
            yield _damaged_bytes(content, dice)


def _damaged_json(content: bytes, dice: random.Random) -> bytes:
    return json.dumps(_damaged(json.loads(content), dice)).encode()


def _damaged_png(content: bytes, dice: random.Random) -> bytes:
    """Damage one chunk, and write its checksum anew."""
    chunks, at = [], 8
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        chunks.append(content[at + 4 : end - 4])
        at = end
    number = dice.randrange(len(chunks))
    chunks[number] = chunks[number][:4] + _damaged_bytes(chunks[number][4:], dice)
    parts = (struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in chunks)
    return content[:8] + b"".join(parts)


def _damaged_zip(content: bytes, dice: random.Random) -> bytes:
    """Damage one member, and pack all again."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(written, "w") as damaged:
        chosen = dice.choice(archive.namelist())
        for name in archive.namelist():
            member = archive.read(name)
            damaged.writestr(name, _damaged_bytes(member, dice) if name == chosen else member)
    return written.getvalue()


_WITHIN = {b"{": _damaged_json, b"\x89PNG": _damaged_png, b"PK": _damaged_zip}
"""Damage within what checksums or the grammar of a format protect, by the beginning of a file."""


def _damaged_bytes(content: bytes, dice: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 8, 64))):
        at = dice.randrange(len(damaged) + 1)
        action = dice.randrange(5)
        if action == 0 and damaged:
            damaged[min(at, len(damaged) - 1)] = dice.randrange(256)
        elif action == 1:
            del damaged[at : at + dice.choice((1, 2, 16, 200))]
        elif action == 2:
            damaged[at:at] = bytes(dice.randrange(256) for _ in range(dice.choice((1, 4, 30))))
        elif action == 3:
            damaged[at:at] = damaged[max(0, at - 40) : at]
        else:
            del damaged[at:]
    return bytes(damaged)


def _damaged(value: Any, dice: random.Random) -> Any:
    """Replace, remove or repeat one value somewhere in JSON."""
    if isinstance(value, dict) and value and dice.random() < 0.9:
        key = dice.choice(list(value))
        if dice.random() < 0.1:
            return {name: one for name, one in value.items() if name != key}
        return value | {key: _damaged(value[key], dice)}
    if isinstance(value, list) and value and dice.random() < 0.85:
        at = dice.randrange(len(value))
        if dice.random() < 0.1:
            return value[:at] + [value[at]] * dice.choice((0, 2, 50)) + value[at + 1 :]
        return [*value[:at], _damaged(value[at], dice), *value[at + 1 :]]
    return dice.choice(_VALUES)


def fuzzed(reader: str, count: int, seed: int) -> Outcome:
    """Damage `count` copies of a file, and return what its reader made of them."""
    from helpers.fuzz_readers import READERS

    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{reader}-"))
    path, read = READERS[reader](folder)
    content, faults, whole, slowest, begin = path.read_bytes(), [], 0, 0.0, time.monotonic()
    read(path)  # undamaged, with all that is imported
    damage = mutations(content, random.Random(f"{reader} {seed}"))
    for number, damaged in zip(range(count), damage, strict=False):
        path.unlink(missing_ok=True)  # to write over it would wait for the disk
        path.write_bytes(damaged)
        start = time.monotonic()
        try:
            read(path)
            whole += 1
        except InputError as error:
            if "\n" in str(error) or len(str(error)) > 2000:
                faults.append(f"file {number}: a message of {len(str(error))} letters: {error!s:.200}")
        except Exception:
            kept = path.rename(folder / f"fault-{number}{path.suffix}")
            faults.append(f"file {number}, {kept}: {traceback.format_exc(limit=-3)}")
        slowest = max(slowest, seconds := time.monotonic() - start)
        if seconds > LIMIT_SECONDS:
            faults.append(f"file {number}: {seconds:.0f} s")
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * 1024
    if peak > LIMIT_BYTES:
        faults.append(f"{peak >> 20} MB")
    return Outcome(reader, count, whole, faults, slowest, time.monotonic() - begin, peak)


def fuzzed_apart(reader: str, count: int, seed: int) -> Outcome:
    """Return the outcome of a process of its own, whose crash is a fault."""
    command = [sys.executable, __file__, str(count), "--seed", str(seed), "--worker", reader]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return Outcome(*json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        reason = f"exit code {done.returncode}: {done.stderr[-2000:]}"
        return Outcome(reader, count, 0, [reason], 0.0, 0.0, 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Damage files for every reader, print the table and the faults, and return the exit code."""
    from helpers.fuzz_readers import READERS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=int, help="damaged files for each reader")
    parser.add_argument("--seed", type=int, default=0, help="of the damage; another one makes other files")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="readers at a time")
    parser.add_argument("--readers", default=",".join(READERS), help="names with commas; all by default")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(fuzzed(options.worker, options.files, options.seed)))
        return 0
    names = options.readers.split(",")
    if unknown := [name for name in names if name not in READERS]:
        parser.error(f"expected readers among {', '.join(READERS)}, got {unknown[0]}; choose some of those")
    print(
        "| reader | files | of them read | faults | slowest file, s | all, s | peak memory, MB |\n|---|" + "---:|" * 6
    )
    faults: list[str] = []
    with ThreadPoolExecutor(options.processes) as threads:
        for one in threads.map(lambda name: fuzzed_apart(name, options.files, options.seed), names):
            row = [one.reader, one.files, one.read, len(one.faults), f"{one.slowest:.2f}", f"{one.seconds:.0f}"]
            print(f"| {' | '.join(map(str, row))} | {one.peak >> 20} |", flush=True)
            faults += [f"{one.reader}: {fault}" for fault in one.faults[:5]]
    print(*faults, sep="\n")
    return bool(faults)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.exit(main())
