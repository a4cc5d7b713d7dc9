"""Clips for a page: all pictures of a trajectory in one PNG, side by side, and how fast they follow each other."""

import io
import math
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jaxpref.analysis import render
from jaxpref.tasks import Task
from jaxpref.types import Trajectory

TIME_STEP = {"cartpole": 0.02, "acrobot": 0.2, "Pendulum-v1": 0.05, "Reacher-misc": 0.05}
"""Seconds of a step in the environment itself. Other environments do not say it."""
OTHER_TIME_STEP = 0.1
MOST_SECONDS, MOST_FRAMES, FRAMES_PER_SECOND, COLUMNS = 8.0, 100, 25, 10


class Clips(NamedTuple):
    """Two trajectories [T] that are shown together."""

    task: Task
    both: tuple[Trajectory, Trajectory]

    @property
    def _lengths(self) -> list[int]:
        return [int(each.mask.sum()) for each in self.both]

    @property
    def _timing(self) -> tuple[int, float, int]:
        """Steps and seconds from a picture to the next, and the speed.

        Speed 1 is the environment's own. Where that takes more than MOST_SECONDS, it is 2, 4, ... times as much.
        """
        longest, step = max(self._lengths), TIME_STEP.get(self.task.name, OTHER_TIME_STEP)
        speed = 2 ** max(0, math.ceil(math.log2(longest * step / MOST_SECONDS)))
        stride = max(1, math.ceil(longest / MOST_FRAMES), math.ceil(speed / FRAMES_PER_SECOND / step))
        return stride, stride * step / speed, speed

    def describe(self) -> dict[str, Any]:
        """Return what a page needs to play the pictures."""
        stride, seconds_per_frame, speed = self._timing
        frames = [math.ceil(length / stride) + 1 for length in self._lengths]  # the last observation is one more
        return {"frames": frames, "columns": COLUMNS, "seconds_per_frame": seconds_per_frame, "speed": speed}

    def draw(self) -> list[bytes]:
        """Draw both, in the same scale. The last picture is faint if the episode has ended before T."""
        stride, obs = self._timing[0], []
        for each, length in zip(self.both, self._lengths, strict=True):
            obs.append(np.stack([*each.obs[:length:stride], each.next_obs[length - 1]]))
        pictures = np.split(render.draw(self.task, np.concatenate(obs)), [len(obs[0])])
        for each, frames in zip(self.both, pictures, strict=True):
            if not each.mask[-1]:
                frames[-1] = 255 - (255 - frames[-1]) // 3
        return [_png(each) for each in pictures]


def _png(pictures: render.Frames) -> bytes:
    """Encode pictures in rows of COLUMNS."""
    num_frames, height, width, _ = pictures.shape
    empty = np.full((-num_frames % COLUMNS, height, width, 3), 255, np.uint8)
    grid = np.concatenate([pictures, empty]).reshape(-1, COLUMNS, height, width, 3).swapaxes(1, 2)
    file = io.BytesIO()
    Image.fromarray(grid.reshape(-1, COLUMNS * width, 3).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
