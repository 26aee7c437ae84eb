"""HTTP interface to draw objects on a frame, the same for a live session and for labelling.

POST   /api/freeze:         freeze the displayed frame
GET    /api/frozen/N:       the frozen frame with its objects, as JPEG; ?without=ID leaves an object out
DELETE /api/frozen/N:       release the frozen frame
POST   /api/mask:           mask of a drawing, as PNG
POST   /api/objects:        add or correct an object
PATCH  /api/objects/ID:     rename an object
DELETE /api/objects/ID:     remove an object
GET    /api/state:          numbers, objects; ?frozen=N while frame N is being drawn on
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
from corrflow.runtime.live.web.image_jobs import Check, ImageJobs, unlimited
from corrflow.runtime.live.web.server import jpeg_response, json_route, parse_id, parse_json, read_body, read_json
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

    def keep(self, number: int) -> None:
        """Note that a frozen frame is still being drawn on."""
        ...

    def mask(self, values: dict[str, Any], check: Check = unlimited) -> np.ndarray:
        """Return the mask [H, W] bool of {"frozen": number, "strokes": [...]}; `check` ends long work by an error."""
        ...

    def submit(self, values: dict[str, Any], check: Check = unlimited) -> int:
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
    jobs = ImageJobs()

    def number_of(request: Request) -> int:
        return parse_id(request.path_params["number"])

    def state(request: Request) -> Response:
        if (frozen := request.query_params.get("frozen")) is not None:
            api.keep(parse_id(frozen))
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

    async def frozen_image(request: Request) -> Response:
        number, without = number_of(request), request.query_params.get("without")
        left_out = 0 if without is None else parse_id(without)

        def draw(check: Check) -> Response:
            result = api.frozen(number).result
            if left_out:
                mask = np.where(result.mask == left_out, 0, result.mask).astype(np.uint8)
                result = replace(result, mask=mask, objects=tuple(one for one in result.objects if one.id != left_out))
            return jpeg_response(draw_overlay(result))

        return await jobs.run(request, draw)

    def release(request: Request) -> Response:
        api.release(number_of(request))
        return JSONResponse({})

    async def mask(request: Request) -> Response:
        body = await read_body(request)
        png = await jobs.run(request, lambda check: _mask_png(api.mask(parse_json(body), check)))
        return Response(png, media_type="image/png")

    async def submit(request: Request) -> Response:
        body = await read_body(request)
        number = await jobs.run(request, lambda check: api.submit(parse_json(body), check))
        return JSONResponse({"id": number}, 201)

    async def rename(request: Request) -> Response:
        number, values = number_of(request), await read_json(request)
        await run_sync(api.rename, number, values.get("name"))
        return JSONResponse({})

    def remove(request: Request) -> Response:
        api.remove(number_of(request))
        return JSONResponse({})

    return [
        Route("/api/state", state),
        json_route("/api/freeze", freeze),
        Route("/api/frozen/{number}", frozen_image),
        Route("/api/frozen/{number}", release, methods=["DELETE"]),
        Route("/api/mask", mask, methods=["POST"]),
        Route("/api/objects", submit, methods=["POST"]),
        Route("/api/objects/{number}", rename, methods=["PATCH"]),
        Route("/api/objects/{number}", remove, methods=["DELETE"]),
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
