"""What a policy server tells people: its page, one session in plain values, small pictures."""

import base64
from pathlib import Path
from typing import Any

import numpy as np

from uwm.robot.seats import Seat

PAGE = Path(__file__).parent / "page" / "index.html"
PICTURE = 64  # pixels a side of a camera on the page


def seat_status(seat: Seat, now_s: float, pictures: bool) -> dict:
    """What the page shows of one session."""
    session = seat.session
    return {
        "number": seat.number,
        "connected": seat.connection is not None,
        "requests": session.requests,
        "actions": session.actions,
        "calls": session.calls,
        "last_ms": None if seat.last_ms is None else round(seat.last_ms, 2),
        "idle_s": round(now_s - seat.used_s, 1),
        "levels": [round(level, 3) for level in session.levels()],
        "cameras": {name: picture(value) for name, value in session.seen.items() if np.ndim(value) == 3} if pictures else {},
    }


def is_upgrade(request: Any) -> bool:
    """Whether a request wants to become a WebSocket."""
    return "websocket" in request.headers.get("Upgrade", "").lower()


def respond(text: str, kind: str) -> Any:
    """A whole HTTP answer of this kind, which nobody keeps."""
    from websockets.datastructures import Headers
    from websockets.http11 import Response

    body = text.encode()
    headers = {
        "Content-Type": f"{kind}; charset=utf-8" if ";" not in kind else kind,
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Connection": "close",
    }
    return Response(200, "OK", Headers(headers), body)


def picture(image: np.ndarray) -> dict:
    """A small picture as raw colours, for a canvas: no encoder needed."""
    step = -(-max(image.shape[:2]) // PICTURE)
    small = np.ascontiguousarray(image[::step, ::step])
    return {"width": small.shape[1], "height": small.shape[0], "rgb": base64.b64encode(small).decode()}
