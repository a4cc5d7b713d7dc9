"""What the stages return, and what they take together."""

from typing import NamedTuple

from flax import struct
from jaxtyping import Array, Float

from jaxpref import training
from jaxpref.analysis import ranking
from jaxpref.networks import Network
from jaxpref.types import Preferences, Trajectory


class Policies(NamedTuple):
    """Fields of `experts.Result`."""

    pi1: Network
    pi2: Network


class Pairs(NamedTuple):
    """The pairs of a seed: those to train on, and the held-out ones."""

    train: Preferences
    heldout: Preferences


class Networks(NamedTuple):
    """Fields of `Trained`: the policies [R, P] and their reward models."""

    params: Network
    reward_params: Network | None


@struct.dataclass
class Trained(training.Result):
    """A trained policy, and the reward model that it was trained on; None for DPO."""

    reward_params: Network | None = None


@struct.dataclass
class Measures:
    """What is measured of a trained policy. `own_*` are measured on its own episodes, `quality` on the held-out pairs.

    true_return, learned_return:  means over its own episodes; training maximised the learned one.
    true_return_error:     standard error of `true_return`.
    kl:                    KL(policy || reference), mean over its own episodes, in nats.
    own_rank_correlation:  of the learned and the true returns of its own episodes.
    quality:               of the learned returns of the held-out pairs.
    """

    true_return: Float[Array, "*batch"]
    true_return_error: Float[Array, "*batch"]
    learned_return: Float[Array, "*batch"]
    kl: Float[Array, "*batch"]
    own_rank_correlation: Float[Array, "*batch"]
    quality: ranking.Quality


LABEL_MEASURES = ("label_entropy", "best_accuracy", "length_accuracy", "equal_return_share")
"""What `ranking` says about the held-out labels."""


@struct.dataclass
class Evaluation:
    """Mean returns of pi1 and pi2 [2] with their standard errors, KL(pi1 || pi2) in nats per episode, and what is
    measured of the trained policies [R, P].
    """

    expert_return: Float[Array, "*batch 2"]
    expert_return_error: Float[Array, "*batch 2"]
    pi1_kl: Float[Array, "*batch"]
    measures: Measures
    labels: dict[str, Float[Array, "*batch"]]
    shown: Trajectory | None
    """Of `first_episodes`; None unless `Setup.show`."""
