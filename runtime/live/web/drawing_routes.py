"""HTTP interface to draw objects on a frame, the same for a live session and for labelling.

POST   /api/freeze:         freeze the displayed frame
GET    /api/frozen/N:       the frozen frame with its objects, as JPEG; ?without=ID leaves an object out
DELETE /api/frozen/N:       release the frozen frame
POST   /api/mask:           mask of a drawing, as PNG
POST   /api/objects:        add or correct an object
PATCH  /api/objects/ID:     rename an object
DELETE /api/objects/ID:     remove an object
GET    /api/state:          numbers, objects
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import cv2
import numpy as np
from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from corrflow.runtime.live.object_editor import Frozen
from corrflow.runtime.live.web.server import jpeg_response, json_route, read_json
from corrflow.runtime.video.overlay import draw_overlay, fill_colours


class DrawingApi(Protocol):
    """Operations behind the routes. Any thread may call them; wrong arguments raise InputError."""

    def freeze(self) -> Frozen:
        """Freeze the displayed frame."""
        ...

    def frozen(self, number: Any) -> Frozen:
        """Return a frozen frame."""
        ...

    def release(self, number: int) -> None:
        """Forget a frozen frame."""
        ...

    def mask(self, values: dict[str, Any]) -> np.ndarray:
        """Return the mask [H, W] bool of {"frozen": number, "strokes": [...]}."""
        ...

    def submit(self, values: dict[str, Any]) -> int:
        """Add or correct the object that `strokes.parse_object` reads, and return its id."""
        ...

    def rename(self, object_id: int, name: Any) -> None:
        """Rename an object."""
        ...

    def remove(self, object_id: int) -> None:
        """Remove an object."""
        ...


def drawing_routes(api: DrawingApi, read_state: Callable[[], dict[str, Any]]) -> list[Route]:
    """Return the routes of this module; `read_state` returns the JSON object of /api/state."""

    def state(request: Request) -> Response:
        return JSONResponse(read_state())

    def freeze(values: dict) -> Response:
        frozen = api.freeze()
        height, width = frozen.result.mask.shape
        keypoints = {
            one.id: [[*point, name] for point, name in zip(one.points.tolist(), one.point_names, strict=True)]
            for one in frozen.result.objects
            if one.points is not None and one.visible
        }
        return JSONResponse({"frozen": frozen.number, "size": [width, height], "keypoints": keypoints})

    def frozen_image(request: Request) -> Response:
        result, without = api.frozen(request.path_params["number"]).result, request.query_params.get("without", "")
        if without.isdecimal():
            mask = np.where(result.mask == int(without), 0, result.mask).astype(np.uint8)
            result = replace(result, mask=mask, objects=tuple(one for one in result.objects if one.id != int(without)))
        return jpeg_response(draw_overlay(result))

    def release(request: Request) -> Response:
        api.release(request.path_params["number"])
        return JSONResponse({})

    def mask(values: dict) -> Response:
        return Response(_mask_png(api.mask(values)), media_type="image/png")

    def submit(values: dict) -> Response:
        return JSONResponse({"id": api.submit(values)}, 201)

    async def rename(request: Request) -> Response:
        values = await read_json(request)
        await run_sync(api.rename, request.path_params["number"], values.get("name"))
        return JSONResponse({})

    def remove(request: Request) -> Response:
        api.remove(request.path_params["number"])
        return JSONResponse({})

    return [
        Route("/api/state", state),
        json_route("/api/freeze", freeze),
        Route("/api/frozen/{number:int}", frozen_image),
        Route("/api/frozen/{number:int}", release, methods=["DELETE"]),
        json_route("/api/mask", mask),
        json_route("/api/objects", submit),
        Route("/api/objects/{number:int}", rename, methods=["PATCH"]),
        Route("/api/objects/{number:int}", remove, methods=["DELETE"]),
    ]


def object_record(object_id: int, name: str, confidence: float, state: str) -> dict[str, Any]:
    """Return one entry of the page's list of objects, with the colour of the overlay."""
    blue, green, red = fill_colours()[object_id].tolist()
    return {
        "id": object_id,
        "name": name,
        "confidence": round(confidence, 3),
        "state": state,
        "colour": f"#{red:02x}{green:02x}{blue:02x}",
    }


def _mask_png(mask: np.ndarray) -> bytes:
    """Encode a mask [H, W] bool as a translucent image with a white outline."""
    image = np.zeros((*mask.shape, 4), np.uint8)  # BGRA
    image[mask] = 60, 220, 255, 130
    image[mask & ~cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)] = 255
    return cv2.imencode(".png", image)[1].tobytes()
