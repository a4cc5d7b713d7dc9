"""The claims: each says, before the data are seen, which arm is expected to end above which.

The page of the evidence says of each comparison whether the data bear it out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from experiments.claims.arms import LOSSES, Arm, arms, teachers
from experiments.pipeline.settings import StudyTask

ClaimName = Literal["gain", "controls", "pairs", "annotators", "online", "losses", "rewards"]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """`arm` is expected to end above `baseline`, or not below it, or to gain nothing on it (a control)."""

    arm: str
    expectation: Literal["above", "not below", "no gain"]
    baseline: str


@dataclasses.dataclass(frozen=True)
class Claim:
    """A section of the page. `arms` are shown from top to bottom; `columns` are further columns of their table."""

    name: ClaimName
    title: str
    text: str
    arms: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    columns: tuple[str, ...] = ()


def _compare(*lines: str) -> tuple[Comparison, ...]:
    """Read lines such as "dpo above pi2"."""
    words = (line.split(" ") for line in lines)
    return tuple(Comparison(first, " ".join(middle), last) for first, *middle, last in words)  # type: ignore[arg-type]


_TEACHERS, _LOSSES = [f"-{name}" for name in teachers("cartpole")], [f"-{name}" for name in LOSSES]

CLAIMS = (
    Claim(
        "gain",
        "What do DPO and PPO-RLHF gain from preferences alone?",
        "The reference is pi2, which is also the initial policy. So only the 200 pairs say what is better. Both "
        "methods are expected to end above pi2, and above pi1, the better of the two policies that were compared. "
        "DPO is expected to end above imitation of the chosen episodes (cloning).",
        ("pi2", "pi1", "dpo", "cloning", "rlhf", "rlhf-true"),
        _compare("dpo above pi2", "rlhf above pi2", "dpo above pi1", "rlhf above pi1", "dpo above cloning"),
        ("kl",),
    ),
    Claim(
        "controls",
        "What does reference pi1 hide?",
        "The original study pulls the policy towards pi1: a KL penalty of weight 10 is part of its loss. If that "
        "distils pi1, a reward of zero does as well as the learned one. With reference pi2, no control is expected "
        "to gain anything: not a reward of zero, not that of a random network, not labels from a coin. `-true` is "
        "PPO on the environment's own reward, the ceiling. `-original-ppo` has the original's PPO settings, and this "
        "study's own experts and reward models.",
        (
            *("pi2", "pi2-again", "pi1", "rlhf-pi1-original-ppo", "rlhf-pi1-original-ppo-zero", "rlhf-original-ppo"),
            *("rlhf-original-ppo-zero", "rlhf-pi1", "rlhf-pi1-zero", "rlhf-pi1-random", "rlhf-pi1-coin"),
            *("rlhf-pi1-true", "rlhf", "rlhf-zero", "rlhf-random", "rlhf-coin", "rlhf-true"),
            *("dpo-pi1", "dpo-pi1-coin", "dpo", "dpo-coin", "cloning"),
        ),
        _compare(
            "rlhf-pi1-original-ppo-zero not below rlhf-pi1-original-ppo",
            "rlhf-pi1-original-ppo-zero above pi2",
            "rlhf-original-ppo-zero no gain pi2",
            *(f"rlhf-{kind} no gain pi2" for kind in ("zero", "random", "coin")),
            "dpo-coin no gain pi2",
            *("rlhf above rlhf-zero", "rlhf-pi1 above rlhf-pi1-zero", "dpo above dpo-coin"),
        ),
        ("explained",),
    ),
    Claim(
        "pairs",
        "How many pairs are needed to pass pi1?",
        "More pairs are expected to help, and 200 to be enough to pass pi1.",
        ("pi2", "pi1", "dpo-10", "dpo-50", "dpo", "dpo-1000", "rlhf-10", "rlhf-50", "rlhf", "rlhf-1000"),
        _compare(
            *(f"dpo{size} above pi1" for size in ("-10", "-50", "", "-1000")),
            "dpo-1000 above dpo-10",
            *(f"rlhf{size} above pi1" for size in ("-10", "-50", "", "-1000")),
            "rlhf-1000 above rlhf-10",
        ),
        ("accuracy",),
    ),
    Claim(
        "annotators",
        "How do noise, ties and skips hurt?",
        "Each annotator labels 200 pairs. One hesitates: its temperature is a tenth of the range of returns. Three "
        "give the wrong answer 10, 20 and 40 % of the time. One calls returns equal that differ by less than a tenth "
        "of the range. One skips pairs in which neither return reaches 70 % of the range. One looks mostly at the "
        "beginning (discount 0.98). Mistakes are expected to hurt, and 20 % of them not to undo the gain over pi2. "
        "Ties and skips are expected to do little harm. The accuracy on labels has a ceiling: the annotator's own "
        "probabilities.",
        ("pi1", "dpo", *(f"dpo{name}" for name in _TEACHERS), "rlhf", *(f"rlhf{name}" for name in _TEACHERS)),
        _compare(
            *(f"{method}-mistakes-{share}% above pi2" for method in ("dpo", "rlhf") for share in (10, 20, 40)),
            *(f"{method} above {method}-mistakes-20%" for method in ("dpo", "rlhf")),
            *(f"{method}-{kind} not below {method}" for method in ("dpo", "rlhf") for kind in ("ties", "skips")),
            *(f"{method} above {method}-{kind}" for method in ("dpo", "rlhf") for kind in ("hesitant", "myopic")),
        ),
        ("entropy", "label_accuracy", "best", "accuracy"),
    ),
    Claim(
        "online",
        "Offline or online?",
        "Online, the policy in training plays the pairs: five rounds of 40 questions, against 200 offline about pi1 "
        "and pi2. It never sees pi1. RLHF asks about a quarter of the pairs that it plays: random ones, or those on "
        "which its ensemble disagrees most. Online is expected to be no worse than offline, and disagreement no "
        "worse than chance.",
        ("pi2", "pi1", "dpo", "online-dpo", "rlhf", "rlhf-ensemble", "online-rlhf", "online-rlhf-disagreement"),
        _compare(
            *("online-dpo above pi2", "online-rlhf above pi2", "online-dpo not below dpo"),
            *("online-rlhf not below rlhf", "online-rlhf-disagreement not below online-rlhf"),
        ),
        ("kl", "accuracy"),
    ),
    Claim(
        "losses",
        "Which loss?",
        "DPO on 200 pairs with right labels, and with 20 % wrong ones. The default smooths labels by 5 %. Robust DPO "
        "is given the share of wrong labels: 20 %, or the default 5 % where all are right. A loss has one beta for "
        "both tasks, the best of three on other seeds. With wrong labels, the robust and the smoothed loss are "
        "expected to be no worse than the plain sigmoid.",
        (
            *("pi1", "dpo", *(f"dpo{name}" for name in _LOSSES)),
            *("dpo-mistakes-20%", *(f"dpo-mistakes-20%{name}" for name in _LOSSES)),
        ),
        _compare(
            "dpo not below dpo-sigmoid",
            *(f"dpo-mistakes-20%{name} not below dpo-mistakes-20%-sigmoid" for name in ("", "-robust")),
            *(f"dpo not below dpo{name}" for name in _LOSSES if name != "-sigmoid"),
        ),
        ("kl", "accuracy", "nll", "calibration"),
    ),
    Claim(
        "rewards",
        "Can the reward models be trusted?",
        "DPO's implicit reward, a reward model, and an ensemble of three with bootstrap weights and early stopping, "
        "on fresh pairs of pi1 and pi2. The true reward of a step is positive on CartPole and negative on Acrobot. A "
        "right sign on these pairs does not mean a right sign on the episodes of the final policy. `-no-decay` is "
        "without weight decay on the kernels, which is expected to matter where 20 % of the labels are wrong. The "
        "ensemble is expected to be no worse than one model.",
        (
            *("dpo-10", "dpo", "dpo-1000", "rlhf-10", "rlhf", "rlhf-1000", "rlhf-ensemble", "rlhf-no-decay"),
            *("online-rlhf", *(f"rlhf-mistakes-20%{kind}" for kind in ("", "-ensemble", "-no-decay"))),
        ),
        _compare(
            *("rlhf above pi2", "rlhf-ensemble above pi2", "rlhf-ensemble not below rlhf"),
            *("rlhf not below rlhf-no-decay", "rlhf-mistakes-20% above rlhf-mistakes-20%-no-decay"),
            "rlhf-mistakes-20%-ensemble not below rlhf-mistakes-20%",
        ),
        ("sign", "accuracy", "nll", "calibration", "rank"),
    ),
)


def named(names: Sequence[ClaimName]) -> list[Claim]:
    """Return the claims with these names, in the order of the page."""
    return [claim for claim in CLAIMS if claim.name in names]


def arms_of(claims: Sequence[Claim], task: StudyTask) -> dict[str, Arm]:
    """Return the arms that some claims need. Every figure shows where pi1 and pi2 stand."""
    names = {"pi1", "pi2"}
    for claim in claims:
        names |= {*claim.arms, *(name for pair in claim.comparisons for name in (pair.arm, pair.baseline))}
    return {name: arm for name, arm in arms(task).items() if name in names}
