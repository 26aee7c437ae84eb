"""HTTP interface of corrflow-label, beside the routes to draw objects.

GET  /api/image:         the displayed frame with its objects, or the newest tracked frame, as JPEG
GET  /api/result:        the overlay video of the last tracking run
POST /api/frame:         display another frame
POST /api/undo:          undo the last change of the objects
POST /api/save:          save the labels
POST /api/track:         start tracking from the displayed frame
POST /api/track/stop:    end tracking early
POST /api/done:          save what is not saved yet, and end the command
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from corrflow.runtime.live.label_api import LabelApi
from corrflow.runtime.live.web.drawing_routes import drawing_routes, object_record
from corrflow.runtime.live.web.server import jpeg_response, json_route


def label_routes(api: LabelApi) -> list[BaseRoute]:
    """Return all routes of corrflow-label."""

    def read_state() -> dict[str, Any]:
        state = api.state()
        return state | {"objects": [object_record(one.id, one.name, 1.0, "drawn") for one in state["objects"]]}

    def image(request: Request) -> Response:
        return jpeg_response(api.overlay())

    def result(request: Request) -> Response:
        return FileResponse(api.result_path(), media_type="video/mp4")

    def seek(values: dict) -> Response:
        api.seek(values.get("frame"))
        return JSONResponse({})

    def done(values: dict) -> Response:
        api.save_changes()
        return JSONResponse({}, background=BackgroundTask(api.done.set))  # after the answer was sent

    def action(path: str, call: Callable[[], object]) -> Route:
        def endpoint(values: dict) -> Response:
            call()
            return JSONResponse({})

        return json_route(path, endpoint)

    return [
        *drawing_routes(api, read_state),
        Route("/api/image", image),
        Route("/api/result", result),
        json_route("/api/frame", seek),
        action("/api/undo", api.undo),
        action("/api/save", api.save),
        action("/api/track", api.track),
        action("/api/track/stop", api.stop_tracking),
        json_route("/api/done", done),
    ]
