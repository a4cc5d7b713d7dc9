"""Environments in place of gymnax's: Acrobot, faster on a CPU, and a continuous mountain car with gymnasium's walls."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments.classic_control import acrobot, continuous_mountain_car
from jaxtyping import Array, Float, Key

from jaxpref.types import Scalar

HALF_TANGENT = np.array([5.013551e-5, 4.17484323e-4, 0.00416759364, 0.0416665946, 0.5], np.float32)
"""tan(x / 2) / x as a polynomial of x^2, by Chebyshev's interpolation on [-pi/4, pi/4], to 2e-9."""
State = tuple[Float[Array, ""], ...]
"""Two angles, two angular velocities."""


def sin_cos(angle: Float[Array, "*batch"]) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Return (sin, cos), to 2e-7 for angles up to 1000. With XLA's default options this takes a quarter of the time of
    `jnp.sin` and `jnp.cos`.

    With t = tan(x / 2), sin(x) = 2t / (1 + t^2) and cos(x) = (1 - t^2) / (1 + t^2). XLA computes a division once. It
    computes cheaper results again in each kernel that reads them.
    """
    quarters = jnp.round(angle * np.float32(2 / np.pi))
    # x is in [-pi/4, pi/4]. A multiple of pi/2 is subtracted in three parts, so that no digits are lost.
    x = angle
    for part in (1.5703125, 4.83751297e-4, 7.54978995e-8):
        x = x - quarters * np.float32(part)
    t = x * jnp.polyval(HALF_TANGENT, x * x)
    size, sin, cos = 1 + t * t, 2 * t, 1 - t * t
    quarter = quarters.astype(jnp.int32)
    sin, cos = jnp.where(quarter & 1, cos, sin), jnp.where(quarter & 1, sin, cos)
    return jnp.where(quarter & 2, -sin, sin) / size, jnp.where((quarter + 1) & 2, -cos, cos) / size


class Acrobot(acrobot.Acrobot):
    """gymnax's Acrobot-v1 with faster steps and resets. Their values are the same, up to rounding."""

    def step_env(
        self, key: Key[Array, ""], state: acrobot.EnvState, action: Array, params: acrobot.EnvParams
    ) -> tuple[Array, acrobot.EnvState, Array, Array, dict[str, Array]]:
        """Play a step: (observation, state, reward, whether the tip is over the bar, discount)."""
        most = params.torque_noise_max
        torque = params.available_torque[action] + jax.random.uniform(key, (), minval=-most, maxval=most)
        start = state.joint_angle1, state.joint_angle2, state.velocity_1, state.velocity_2
        angle1, angle2, velocity1, velocity2 = _integrate(start, torque, params)
        angle1, angle2 = (acrobot.wrap(angle, -jnp.pi, jnp.pi) for angle in (angle1, angle2))
        velocity1 = jnp.clip(velocity1, -params.max_vel_1, params.max_vel_1)
        velocity2 = jnp.clip(velocity2, -params.max_vel_2, params.max_vel_2)
        (sin1, cos1), (sin2, cos2) = sin_cos(angle1), sin_cos(angle2)
        over_bar = -cos1 - (cos1 * cos2 - sin1 * sin2) > 1.0
        state = acrobot.EnvState(
            time=state.time + 1, joint_angle1=angle1, joint_angle2=angle2, velocity_1=velocity1, velocity_2=velocity2
        )
        return self.get_obs(state), state, jnp.where(over_bar, 0.0, -1.0), over_bar, {"discount": 1.0 - over_bar}

    def reset_env(self, key: Key[Array, ""], params: acrobot.EnvParams) -> tuple[Array, acrobot.EnvState]:
        """Draw an initial state."""
        drawn = jax.random.uniform(key, (4,), minval=-0.1, maxval=0.1)
        angle1, angle2, velocity1, velocity2 = drawn / (1 + 0 * drawn)  # computed once, see `sin_cos`
        state = acrobot.EnvState(
            time=jnp.int32(0), joint_angle1=angle1, joint_angle2=angle2, velocity_1=velocity1, velocity_2=velocity2
        )
        return self.get_obs(state), state

    def get_obs(self, state: acrobot.EnvState, *_: Any) -> Array:
        """Return sine and cosine of both angles, and the velocities."""
        (sin1, cos1), (sin2, cos2) = sin_cos(state.joint_angle1), sin_cos(state.joint_angle2)
        return jnp.stack([cos1, sin1, cos2, sin2, state.velocity_1, state.velocity_2])


def _integrate(state: State, torque: Array, params: acrobot.EnvParams) -> State:
    """Make one step of the classical Runge-Kutta method."""

    def slope(scale: Scalar, direction: State) -> State:
        return _derivative(tuple(x + scale * dx for x, dx in zip(state, direction, strict=True)), torque, params)

    k1 = _derivative(state, torque, params)
    k2 = slope(params.dt / 2, k1)
    k3 = slope(params.dt / 2, k2)
    k4 = slope(params.dt, k3)
    steps = zip(state, k1, k2, k3, k4, strict=True)
    return tuple(x + params.dt / 6 * (a + 2 * b + 2 * c + d) for x, a, b, c, d in steps)


def _derivative(state: State, torque: Array, params: acrobot.EnvParams) -> State:
    """Compute d(state)/dt by the equations of Sutton and Barto, 2018, section 11.3."""
    angle1, angle2, velocity1, velocity2 = state
    mass1, mass2, length, inertia = params.link_mass_1, params.link_mass_2, params.link_length_1, params.link_moi
    center1, center2, gravity = params.link_com_pos_1, params.link_com_pos_2, 9.8
    (sin1, cos1), (sin2, cos2) = sin_cos(angle1), sin_cos(angle2)
    coupling = mass2 * length * center2
    d1 = mass1 * center1**2 + mass2 * (length**2 + center2**2) + 2 * coupling * cos2 + 2 * inertia
    d2 = mass2 * center2**2 + coupling * cos2 + inertia
    phi2 = mass2 * center2 * gravity * (sin1 * cos2 + cos1 * sin2)
    phi1 = (mass1 * center1 + mass2 * length) * gravity * sin1 + phi2
    phi1 -= coupling * velocity2 * (velocity2 + 2 * velocity1) * sin2
    force2 = torque + d2 / d1 * phi1 - coupling * velocity1**2 * sin2 - phi2
    acceleration2 = force2 / (mass2 * center2**2 + inertia - d2**2 / d1)
    return velocity1, velocity2, -(d2 * acceleration2 + phi1) / d1, acceleration2


class ContinuousMountainCar(continuous_mountain_car.ContinuousMountainCar):
    """gymnax's MountainCarContinuous-v0, except that the wall on the left stops the car, as in gymnasium.

    gymnax lets it keep its speed there, and stops it at the flag instead where it moves to the left.
    """

    def step_env(
        self, key: Key[Array, ""], state: Any, action: Float[Array, " 1"], params: Any
    ) -> tuple[Array, Any, Array, Array, dict[str, Array]]:
        """Play a step: (observation, state, reward, whether the car is at the flag, nothing)."""
        force = jnp.clip(action[0], params.min_action, params.max_action)
        velocity = state.velocity + params.power * force - params.gravity * jnp.cos(3 * state.position)
        velocity = jnp.clip(velocity, -params.max_speed, params.max_speed)
        position = jnp.clip(state.position + velocity, params.min_position, params.max_position)
        velocity = jnp.where((position <= params.min_position) & (velocity < 0), 0.0, velocity)
        state = state.replace(position=position, velocity=velocity, time=state.time + 1)
        at_flag = self.is_terminated(state, params)
        return self.get_obs(state), state, jnp.where(at_flag, 100.0, 0.0) - 0.1 * action[0] ** 2, at_flag, {}
