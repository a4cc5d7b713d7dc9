"""What the evidence is about: arms by name, and the claims that compare them.

A claim says before anyone looks which arm is expected to end above which. The page that `experiments.evidence` writes
says of each comparison whether the data bear it out.

An arm's name is its method and what differs from the plain case: 200 pairs, reference pi2, the library's defaults.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from experiments.arms import Arm, Hyperparameters, Method, Reward
from experiments.settings import Policy, TaskName, original_settings
from jaxpref import annotators, dpo, online, reward_model

LOSSES = {
    # Betas: the best of three on other seeds (700 to 719), one for both tasks.
    "sigmoid": dpo.Config(loss="sigmoid"),
    "robust": dpo.Config(loss="robust"),
    "hinge": dpo.Config(loss="hinge", beta=0.1),
    "ipo": dpo.Config(loss="ipo", beta=0.02),
    "sigmoid_per_step": dpo.Config(loss="sigmoid_per_step", beta=30.0),
    "ipo_per_step": dpo.Config(loss="ipo_per_step", beta=3.0),
}
"""Beside the default, conservative DPO."""
MISTAKES = 0.2
REFIT = reward_model.Config(num_updates=50)
"""Online, an ensemble is fitted in every round: with fewer updates each time than offline."""
NO_DECAY = reward_model.Config(weight_decay=0.0)


def teachers(task: TaskName) -> dict[str, annotators.Config]:
    """Annotators beside the plain Bradley-Terry one. The hesitant one's temperature is a tenth of the task's range."""
    return {
        "hesitant": annotators.Config(temperature={"cartpole": 20.0, "acrobot": 50.0}[task]),
        "mistakes-10%": annotators.Config(mistake_prob=0.1),
        "mistakes-20%": annotators.Config(mistake_prob=MISTAKES),
        "mistakes-40%": annotators.Config(mistake_prob=0.4),
        "ties": annotators.Config(tie_threshold=0.1),
        "skips": annotators.Config(skip_threshold=0.7),
        "myopic": annotators.Config(discount=0.98),
    }


def arms(task: TaskName) -> dict[str, Arm]:
    """Every arm by name; those that need the same pairs stand beside each other, which saves sampling them anew."""
    table = {"pi1": Arm("pi1"), "pi2": Arm("pi2"), "pi2-again": Arm("pi2-again")}
    table |= _plain_pairs(task)
    for size in (10, 50, 1000):
        table |= {f"{method}-{size}": Arm(method, num_pairs=size, pool=1000) for method in ("dpo", "rlhf")}
    for name, teacher in teachers(task).items():
        table |= {f"dpo-{name}": _arm("dpo", annotator=teacher), f"rlhf-{name}": _arm("rlhf", annotator=teacher)}
        if name == "mistakes-20%":
            table |= {f"dpo-{name}-{loss}": _arm("dpo", annotator=teacher, dpo=_told(LOSSES[loss])) for loss in LOSSES}
            table[f"rlhf-{name}-no-decay"] = _arm("rlhf", annotator=teacher, reward_model=NO_DECAY)
            table[f"rlhf-{name}-ensemble"] = _ensemble(annotator=teacher)
    coin = annotators.Config(mistake_prob=0.5)
    for reference in ("pi1", "pi2"):
        table[f"dpo{_suffix(reference)}-coin"] = _arm("dpo", reference, annotator=coin)
        table[f"rlhf{_suffix(reference)}-coin"] = _arm("rlhf", reference, annotator=coin)
    table["online-dpo"] = _arm("online-dpo")
    for name, share in (("online-rlhf", 0.0), ("online-rlhf-disagreement", 1.0)):
        asking = online.Config(num_candidates=4, disagreement=share)
        table[name] = _arm("online-rlhf", reward_model=REFIT, online=asking)
    return table


def _plain_pairs(task: TaskName) -> dict[str, Arm]:
    """Arms on 200 pairs of the plain annotator, or on none."""
    original = original_settings(task, "rlhf").ppo
    table: dict[str, Arm] = {}
    for reference in ("pi1", "pi2"):
        suffix = _suffix(reference)
        table |= {
            f"dpo{suffix}": _arm("dpo", reference),
            f"rlhf{suffix}": _arm("rlhf", reference),
            f"rlhf{suffix}-original": _arm("rlhf", reference, ppo=original),
        }
        table |= {f"rlhf{suffix}-{kind}": _arm("rlhf", reference, reward=kind) for kind in ("zero", "random", "true")}
        table[f"rlhf{suffix}-original-zero"] = _arm("rlhf", reference, reward="zero", ppo=original)
    table["rlhf-ensemble"] = _ensemble()
    table["rlhf-no-decay"] = _arm("rlhf", reward_model=NO_DECAY)
    table["cloning"] = _arm("dpo", dpo=dpo.Config(loss="cloning"))
    return table | {f"dpo-{loss}": _arm("dpo", dpo=config) for loss, config in LOSSES.items()}


def _arm(method: Method, reference: Policy = "pi2", reward: Reward = "learned", **hyper: Any) -> Arm:
    return Arm(method, reference, reward=reward, hyper=Hyperparameters(**hyper))


def _ensemble(**hyper: Any) -> Arm:
    """Three reward models with bootstrap weights and early stopping."""
    return dataclasses.replace(_arm("rlhf", reward_model=reward_model.Config(holdout_every=5), **hyper), num_members=3)


def _suffix(reference: Policy) -> str:
    return "-pi1" if reference == "pi1" else ""


def _told(config: dpo.Config) -> dpo.Config:
    # Robust DPO asks how often labels are wrong.
    return dataclasses.replace(config, label_smoothing=MISTAKES) if config.loss == "robust" else config


@dataclasses.dataclass(frozen=True)
class Comparison:
    """`arm` is expected to end above `baseline`, or not below it, or to gain nothing on it (a control)."""

    arm: str
    expectation: Literal["above", "not below", "no gain"]
    baseline: str


@dataclasses.dataclass(frozen=True)
class Claim:
    """A section of the page. `arms` are shown from top to bottom; `columns` are `evidence.COLUMNS` for its table."""

    name: str
    title: str
    text: str
    arms: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    columns: tuple[str, ...] = ()


def _compare(*lines: str) -> tuple[Comparison, ...]:
    """Of lines as "dpo above pi2"."""
    words = (line.split(" ") for line in lines)
    return tuple(Comparison(first, " ".join(middle), last) for first, *middle, last in words)  # type: ignore[arg-type]


CLAIMS = (
    Claim(
        "gain",
        "What do DPO and PPO-RLHF gain from preferences alone?",
        "With reference pi2, the initial policy itself, nothing but 200 pairs says what is better. Both methods are "
        "expected to end above pi2 and above pi1, the better of the two policies that were compared; and DPO above "
        "plain imitation of the chosen episodes (cloning).",
        ("pi2", "pi1", "dpo", "cloning", "rlhf", "rlhf-true"),
        _compare("dpo above pi2", "rlhf above pi2", "dpo above pi1", "rlhf above pi1", "dpo above cloning"),
        ("kl",),
    ),
    Claim(
        "controls",
        "What does reference pi1 hide?",
        "The original study pulls the policy towards pi1 with a KL penalty of weight 10 in the loss. A reward of zero "
        "should then do as well as the learned one: it distils pi1. With reference pi2 no control is expected to gain "
        "anything: neither a reward of zero, nor a random network's, nor labels decided by a coin. `-true` is PPO on "
        "the environment's own reward, the ceiling; `-original` has the original's PPO settings.",
        (
            *("pi2", "pi2-again", "pi1", "rlhf-pi1-original", "rlhf-pi1-original-zero", "rlhf-original"),
            *("rlhf-original-zero", "rlhf-pi1", "rlhf-pi1-zero", "rlhf-pi1-random", "rlhf-pi1-coin", "rlhf-pi1-true"),
            *("rlhf", "rlhf-zero", "rlhf-random", "rlhf-coin", "rlhf-true"),
            *("dpo-pi1", "dpo-pi1-coin", "dpo", "dpo-coin", "cloning"),
        ),
        _compare(
            "rlhf-pi1-original-zero not below rlhf-pi1-original",
            "rlhf-pi1-original-zero above pi2",
            "rlhf-original-zero no gain pi2",
            "rlhf-zero no gain pi2",
            "rlhf-random no gain pi2",
            "rlhf-coin no gain pi2",
            "dpo-coin no gain pi2",
            "rlhf above rlhf-zero",
            "rlhf-pi1 above rlhf-pi1-zero",
            "dpo above dpo-coin",
        ),
        ("explained",),
    ),
    Claim(
        "pairs",
        "How many pairs are needed to pass pi1?",
        "More pairs are expected to help, and 200 to be enough to pass pi1.",
        ("pi2", "pi1", "dpo-10", "dpo-50", "dpo", "dpo-1000", "rlhf-10", "rlhf-50", "rlhf", "rlhf-1000"),
        _compare(
            *("dpo-10 above pi1", "dpo-50 above pi1", "dpo above pi1", "dpo-1000 above pi1", "dpo-1000 above dpo-10"),
            *("rlhf-10 above pi1", "rlhf-50 above pi1", "rlhf above pi1", "rlhf-1000 above pi1"),
            "rlhf-1000 above rlhf-10",
        ),
        ("accuracy",),
    ),
    Claim(
        "annotators",
        "How do noise, ties and skips hurt?",
        "200 pairs, labelled by annotators that hesitate (temperature a tenth of the range of returns), give the wrong "
        "answer (10, 20, 40 % of the time), call returns equal that differ by less than a tenth of the range, skip "
        "pairs of which neither reaches 70 % of it, or look only at the beginning (discount 0.98). Mistakes are "
        "expected to hurt, and 20 % of them not to undo the gain over pi2; ties and skips to do little harm.",
        (
            "pi1",
            *(f"dpo{kind}" for kind in ("", *(f"-{name}" for name in teachers("cartpole")))),
            *(f"rlhf{kind}" for kind in ("", *(f"-{name}" for name in teachers("cartpole")))),
        ),
        _compare(
            *(f"{method}-mistakes-{share}% above pi2" for method in ("dpo", "rlhf") for share in (10, 20, 40)),
            *(f"{method} above {method}-mistakes-20%" for method in ("dpo", "rlhf")),
            *(f"{method}-{kind} not below {method}" for method in ("dpo", "rlhf") for kind in ("ties", "skips")),
            *(f"{method} above {method}-{kind}" for method in ("dpo", "rlhf") for kind in ("hesitant", "myopic")),
        ),
        ("entropy", "best", "accuracy"),
    ),
    Claim(
        "online",
        "Offline or online?",
        "Online, the policy that is being trained plays the pairs: five rounds of 40 questions, against 200 offline "
        "about pi1 and pi2. It never sees pi1. RLHF asks about a quarter of the pairs it plays, drawn at random or "
        "those that its ensemble disagrees on most. Online is expected to be no worse than offline, and disagreement "
        "no worse than chance.",
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
        "DPO on 200 pairs with right labels, and with 20 % of them wrong. The default smooths labels by 5 %; robust "
        "DPO is told the share of wrong ones. Betas are one for both tasks, the best of three on other seeds. Where "
        "labels are wrong, the robust and the smoothed loss are expected to be no worse than the plain sigmoid.",
        (
            "pi1",
            *(f"dpo{kind}" for kind in ("", *(f"-{name}" for name in LOSSES))),
            *(f"dpo-mistakes-20%{kind}" for kind in ("", *(f"-{name}" for name in LOSSES))),
        ),
        _compare(
            "dpo not below dpo-sigmoid",
            "dpo-mistakes-20% not below dpo-mistakes-20%-sigmoid",
            "dpo-mistakes-20%-robust not below dpo-mistakes-20%-sigmoid",
            *(f"dpo not below dpo-{name}" for name in LOSSES if name != "sigmoid"),
        ),
        ("kl", "accuracy", "nll", "calibration"),
    ),
    Claim(
        "rewards",
        "Can the reward models be trusted?",
        "Judged on fresh pairs: DPO's implicit reward, a reward model, and an ensemble of three with bootstrap "
        "weights and early stopping. A reward per step must have the right sign, or the agent learns to go on "
        "(Acrobot) or to fall (CartPole). `-no-decay`: without weight decay on the kernels, which is expected to "
        "matter where 20 % of the labels are wrong. The ensemble is expected to be no worse than one model.",
        (
            *("dpo-10", "dpo", "dpo-1000", "rlhf-10", "rlhf", "rlhf-1000", "rlhf-ensemble", "rlhf-no-decay"),
            *("online-rlhf", *(f"rlhf-mistakes-20%{kind}" for kind in ("", "-ensemble", "-no-decay"))),
        ),
        _compare(
            *("rlhf above pi2", "rlhf-ensemble above pi2", "rlhf-ensemble not below rlhf"),
            "rlhf not below rlhf-no-decay",
            "rlhf-mistakes-20% above rlhf-mistakes-20%-no-decay",
            "rlhf-mistakes-20%-ensemble not below rlhf-mistakes-20%",
        ),
        ("sign", "accuracy", "nll", "calibration", "rank"),
    ),
)
