"""Thirty hostile clients of the page: `python hostile_clients.py PORT SECONDS FROZEN` prints their answers.

Each sends its next request when the last is answered: drawings of many boxes, large bodies, long numbers, broken
headers, heads that never end, viewers that do not read, pictures, and questions for the health.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import Counter

HEAD = "Host: 127.0.0.1\r\n"
BOX = {"kind": "box", "points": [[50, 30], [210, 200]]}


def post(path: str, values: object) -> bytes:
    body = json.dumps(values)
    return (
        f"POST {path} HTTP/1.1\r\n{HEAD}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def get(path: str, header: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\n{HEAD}{header}\r\n".encode()


def kinds(frozen: int) -> dict[str, tuple[int, bytes]]:
    """Return the number of clients of each kind, and what they send."""
    return {
        "boxes": (5, post("/api/mask", {"frozen": frozen, "strokes": [BOX] * 16})),
        "too many boxes": (3, post("/api/mask", {"frozen": frozen, "strokes": [BOX] * 200})),
        "large body": (3, post("/api/mask", {"strokes": [[[1.25, 2.5]] * 5000] * 10})),
        "long number": (3, get(f"/api/frozen/{'9' * 5000}")),
        "broken origin": (2, get("/api/state", "Origin: http://[::1\r\n")),
        "picture": (3, get(f"/api/frozen/{frozen}")),
        "freeze": (1, post("/api/freeze", {})),
        "health": (2, get("/healthz")),
        "head without end": (4, f"GET / HTTP/1.1\r\n{HEAD}X: ".encode()),
        "viewer that does not read": (4, get("/stream")),
    }


async def attack(port: int, name: str, content: bytes, answers: Counter[str]) -> None:
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
            try:
                while True:
                    writer.write(content)
                    if name in ("head without end", "viewer that does not read"):
                        await asyncio.sleep(1)
                        content = b"x" if name == "head without end" else b""
                        continue
                    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                    await reader.readexactly(int(head.partition("content-length: ")[2].split("\r\n")[0]))
                    answers[f"{name}: {head[9:12]}"] += 1
            finally:
                writer.close()


async def main(port: int, seconds: float, frozen: int) -> None:
    answers: Counter[str] = Counter()
    tasks = [
        asyncio.create_task(attack(port, name, content, answers))
        for name, (count, content) in kinds(frozen).items()
        for _ in range(count)
    ]
    assert len(tasks) == 30
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(json.dumps(answers))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])))
