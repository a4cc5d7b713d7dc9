"""A scripted person: answers over HTTP, from nothing but the pictures that the page shows."""

import io
import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image

Judge = Callable[[np.ndarray, np.ndarray], str]
"""Pictures of the left and of the right clip [frames, height, width, 3] -> left, right, tie or skip."""


class Person:
    """Somebody who has the page open at this address."""

    def __init__(self, address: str, judge: Judge, name: str = "scripted"):
        parts = urlsplit(address)
        self.base, self.token = f"http://{parts.netloc}", parse_qs(parts.query)["token"][0]
        self.judge, self.name, self.page = judge, name, f"{name}-{time.monotonic_ns()}"

    def request(self, path: str, body: dict[str, Any] | None = None) -> bytes:
        """Send a request as the page does."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.base}/{path}", data, headers), timeout=60) as reply:
            return reply.read()

    def act(self, action: str, **fields: Any) -> dict[str, Any]:
        """Do what the page can do; return what it would show."""
        return json.loads(self.request(action, {"page": self.page, "have": [], **fields}))

    def pictures(self, question: dict[str, Any], side: str) -> np.ndarray:
        """Fetch the pictures of a clip."""
        sheet = np.asarray(Image.open(io.BytesIO(self.request(f"clip/{question['id']}/{side}"))).convert("RGB"))
        frames, columns = question["frames"][side == "right"], question["columns"]
        height, width = sheet.shape[0] // -(-frames // columns), sheet.shape[1] // columns
        rows = sheet.reshape(-1, height, columns, width, 3)
        return rows.swapaxes(1, 2).reshape(-1, height, width, 3)[:frames]

    def answer_all(self) -> None:
        """Answer until there is nothing left to ask."""
        while (view := self.act("state"))["phase"] != "done":
            for question in view["questions"][:1]:
                choice = self.judge(*(self.pictures(question, side) for side in ("left", "right")))
                self.act("answer", question=question["id"], choice=choice, seconds=1.0, name=self.name)
            if not view["questions"]:
                time.sleep(0.05)
