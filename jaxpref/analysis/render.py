"""Draw observations: the pictures of an episode, as frames and as an animated GIF."""

import functools
import io
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageColor, ImageDraw

from jaxpref.analysis.plots import COLOURS, GREY
from jaxpref.types import Task

SUPERSAMPLING = 2
"""Pictures are drawn this many times larger and then reduced, which makes their edges smooth."""
LONGEST_SIDE = 320
"""Width of a picture, in pixels."""
LINE = "#CFD6DC"

Frames = UInt8[np.ndarray, "T height width 3"]
Point = tuple[float, float]


def frames(task_name: str, obs: Float[np.ndarray, "T ..."]) -> Frames:
    """Draw an RGB picture of every observation.

    These tasks have their own drawings: "cartpole", "acrobot", "Pendulum-v1", "MountainCar-v0",
    "MountainCarContinuous-v0" and "Reacher-misc". The observations of both mountain cars are those of
    `mountain_car_observe`. For any other task, an observation [O] becomes a bar chart, and [H, W] or [H, W, C] becomes
    pixels, with one colour for each channel. The largest values in `obs` set the scale.
    """
    if obs.ndim not in (2, 3, 4) or 0 in obs.shape:
        raise ValueError(f"obs must be [T, O], [T, H, W] or [T, H, W, C] without an empty axis, got {list(obs.shape)}")
    obs = np.asarray(obs, np.float64)
    if obs.ndim > 2:
        return _pixels(obs if obs.ndim == 4 else obs[..., None])
    drawings: dict[str, Callable[..., _Canvas]] = {
        "cartpole": _cartpole,
        "acrobot": _acrobot,
        "Pendulum-v1": _pendulum,
        "MountainCar-v0": functools.partial(_mountain_car, goal=0.5),
        "MountainCarContinuous-v0": functools.partial(_mountain_car, goal=0.45),
        "Reacher-misc": _reacher,
    }
    draw = drawings.get(task_name)
    return _bars(obs) if draw is None else np.stack([draw(one).picture() for one in obs])


def draw(task: Task, obs: Float[np.ndarray, "T O"]) -> Frames:
    """Draw observations as the task says: by `task.draw`, or else by `frames`."""
    shaped = np.asarray(obs).reshape(-1, *(task.obs_shape or (task.obs_size,)))
    return frames(task.name, shaped) if task.draw is None else np.stack([np.asarray(task.draw(one)) for one in shaped])


def gif(pictures: Frames, seconds: Sequence[float]) -> bytes:
    """Encode an animated GIF that repeats for ever. `seconds` is the duration of each picture, in steps of 0.01.

    The same pictures give the same bytes.
    """
    if len(seconds) != len(pictures):
        raise ValueError(f"seconds must have one number for each of {len(pictures)} pictures, got {len(seconds)}")
    # All pictures share one palette: what does not move keeps its colour and needs no bytes.
    sample = np.concatenate(pictures[:: max(1, len(pictures) // 8)])
    palette = Image.fromarray(sample).quantize(32)
    images = [Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    milliseconds = [10 * round(100 * duration) for duration in seconds]
    file = io.BytesIO()
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=milliseconds, loop=0)
    return file.getvalue()


def multiple_exposure(pictures: Frames, num_exposures: int = 8) -> bytes:
    """Encode a PNG that shows several moments of an episode in one picture, at equal intervals, dark over bright."""
    moments = np.linspace(0, len(pictures) - 1, num_exposures).round().astype(int)
    file = io.BytesIO()
    Image.fromarray(pictures[moments].min(axis=0)).quantize(32).save(file, "PNG")
    return file.getvalue()


class _Canvas:
    """Draw in the units of a task. `middle` is the y in the middle, where x is 0; `unit` the pixels of one unit."""

    def __init__(self, height: int, middle: float, unit: float):
        self.middle, self.scale = middle, unit * SUPERSAMPLING
        self.image = Image.new("RGB", (LONGEST_SIDE * SUPERSAMPLING, height * SUPERSAMPLING), "white")
        self.draw = ImageDraw.Draw(self.image)

    def _place(self, x: float, y: float) -> Point:
        return self.image.width / 2 + x * self.scale, self.image.height / 2 - (y - self.middle) * self.scale

    def line(self, start: Point, end: Point, colour: str, width: float) -> None:
        """Draw a line with round ends."""
        self.draw.line([self._place(*start), self._place(*end)], fill=colour, width=round(width * self.scale))
        for point in (start, end):
            self.disc(point, width / 2, colour)

    def disc(self, centre: Point, radius: float, colour: str) -> None:
        self.draw.circle(self._place(*centre), radius * self.scale, fill=colour)

    def box(self, left: float, bottom: float, right: float, top: float, colour: str) -> None:
        self.draw.rectangle([self._place(left, top), self._place(right, bottom)], fill=colour)

    def polygon(self, corners: Sequence[Point], colour: str) -> None:
        self.draw.polygon([self._place(*corner) for corner in corners], fill=colour)

    def links(self, pivot: Point, joint: Point, tip: Point) -> None:
        """Draw two links of one metre."""
        self.line(pivot, joint, COLOURS[0], 0.17)
        self.line(joint, tip, COLOURS[1], 0.17)
        self.disc(pivot, 0.1, "black")
        self.disc(joint, 0.1, "black")

    def picture(self) -> UInt8[np.ndarray, "height width 3"]:
        return np.asarray(self.image.reduce(SUPERSAMPLING))


def _cartpole(obs: Float[np.ndarray, " O"]) -> _Canvas:
    """Draw the cart on its track, in metres, with marks where the episode ends."""
    x, angle = obs[0], obs[2]
    hinge, tip = (x, 0.1), (x + 1.4 * np.sin(angle), 0.1 + 1.4 * np.cos(angle))
    canvas = _Canvas(160, middle=0.55, unit=LONGEST_SIDE / 5.2)
    canvas.box(-2.6, -0.18, 2.6, -0.14, LINE)
    for end in (-2.4, 2.4):
        canvas.box(end - 0.02, -0.30, end + 0.02, -0.02, LINE)
    canvas.box(x - 0.36, -0.14, x + 0.36, 0.16, GREY)
    canvas.line(hinge, tip, COLOURS[1], 0.11)
    canvas.disc(hinge, 0.08, "black")
    return canvas


def _acrobot(obs: Float[np.ndarray, " O"]) -> _Canvas:
    """Draw two links of one metre under a pivot, and the height that the tip must reach."""
    angle = np.arctan2(obs[1], obs[0])
    sum_of_angles = angle + np.arctan2(obs[3], obs[2])
    pivot, joint = (0.0, 0.0), (np.sin(angle), -np.cos(angle))
    tip = (joint[0] + np.sin(sum_of_angles), joint[1] - np.cos(sum_of_angles))
    canvas = _Canvas(240, middle=0.0, unit=240 / 4.4)
    canvas.box(-3.0, 0.98, 3.0, 1.02, LINE)
    canvas.links(pivot, joint, tip)
    return canvas


def _pendulum(obs: Float[np.ndarray, " O"]) -> _Canvas:
    """Draw a rod of one metre in a circle, with a mark over the tip of the upright rod."""
    pivot, tip = (0.0, 0.0), (-obs[1], obs[0])  # the angle is 0 upright and grows counter-clockwise
    canvas = _Canvas(240, middle=0.0, unit=240 / 2.6)
    canvas.disc(pivot, 1.17, LINE)
    canvas.disc(pivot, 1.14, "white")
    canvas.box(-0.02, 1.12, 0.02, 1.25, LINE)
    canvas.line(pivot, tip, COLOURS[1], 0.15)
    canvas.disc(pivot, 0.06, "black")
    return canvas


def _mountain_car(obs: Float[np.ndarray, " O"], goal: float) -> _Canvas:
    """Draw the car on its hill, and a flag at the position `goal`."""
    position = obs[0] - 0.5
    canvas = _Canvas(200, middle=0.12, unit=LONGEST_SIDE / 2.1)
    track = [_on_hill(each) for each in np.linspace(-1.2, 0.6, 91)]
    canvas.polygon([(-0.9, -1.0), *track, (0.9, -1.0)], LINE)
    x, y = _on_hill(goal)
    canvas.box(x - 0.008, y, x + 0.008, y + 0.28, GREY)
    canvas.polygon([(x + 0.008, y + 0.28), (x + 0.008, y + 0.17), (x + 0.14, y + 0.225)], COLOURS[2])
    front = [(0.11, 0.03), (0.11, 0.08), (0.07, 0.08), (0.05, 0.13)]
    outline = [*front, *((-along, above) for along, above in reversed(front))]
    canvas.polygon([_on_hill(position, *corner) for corner in outline], COLOURS[1])
    for wheel in (-0.06, 0.06):
        canvas.disc(_on_hill(position, wheel, 0.035), 0.03, "black")
    return canvas


def _on_hill(position: float, along: float = 0.0, above: float = 0.0) -> Point:
    """Return a point of the canvas: start on the hill at `position` and go along the slope and at right angles to it.

    The height of the hill is 0.45 sin(3 x), as in gymnasium's pictures. The middle of the track, -0.3, is at x = 0.
    """
    slope = np.arctan(3 * 0.45 * np.cos(3 * position))
    x = position + 0.3 + along * np.cos(slope) - above * np.sin(slope)
    return x, 0.45 * np.sin(3 * position) + along * np.sin(slope) + above * np.cos(slope)


def _reacher(obs: Float[np.ndarray, " O"]) -> _Canvas:
    """Draw two links of one metre, whose angles are both measured from the x axis, and the goal of the tip."""
    pivot, joint = (0.0, 0.0), (obs[0], obs[2])
    tip, goal = (obs[0] + obs[1], obs[2] + obs[3]), (obs[6], obs[7])
    canvas = _Canvas(240, middle=0.0, unit=240 / 4.6)
    canvas.disc(goal, 0.2, COLOURS[2])
    canvas.links(pivot, joint, tip)
    return canvas


def _bars(obs: Float[np.ndarray, "T O"]) -> Frames:
    """Draw each number of the observation as a bar that goes up or down from the middle."""
    largest = np.abs(obs).max(axis=0)
    heights = obs / np.where(largest > 0, largest, 1.0)
    levels = np.linspace(1.0, -1.0, 161)[:, None]
    filled = (levels * heights[:, None] >= 0) & (np.abs(levels) <= np.abs(heights[:, None]))  # [T, height, O]
    width = max(1, LONGEST_SIDE // obs.shape[1])
    inked = np.arange(width) < max(1, width - 2)  # a gap between two bars
    covered = (filled[..., None] & inked).reshape(*filled.shape[:2], -1)
    return np.where(covered[..., None], _rgb(COLOURS[0]), _rgb("white"))


def _pixels(obs: Float[np.ndarray, "T H W C"]) -> Frames:
    """Paint the channels over each other on white, the last one on top."""
    largest = obs.max(axis=(0, 1, 2))
    shares = np.clip(obs / np.where(largest > 0, largest, 1.0), 0.0, 1.0)
    picture = np.broadcast_to(_rgb("white"), (*obs.shape[:3], 3))
    for channel in range(obs.shape[-1]):
        share = shares[..., channel, None]
        picture = (1 - share) * picture + share * _rgb(COLOURS[channel % len(COLOURS)])
    enlarged = max(1, LONGEST_SIDE // 2 // max(obs.shape[1:3]))
    return picture.round().astype(np.uint8).repeat(enlarged, axis=1).repeat(enlarged, axis=2)


def _rgb(colour: str) -> UInt8[np.ndarray, " 3"]:
    return np.array(ImageColor.getrgb(colour), np.uint8)
