"""The claims: each says which arm is expected to end above which."""

import itertools
import re
from typing import Literal, NamedTuple, get_args

from experiments.claims.arms import TaskName

ClaimName = Literal[
    "gain", "bit", "same-length", "harm", "controls", "critic", "pairs", "clips", "equal", "updates", "experts",
    "annotators", "online", "losses", "rewards",
]  # fmt: skip
STUDY: tuple[TaskName, ...] = ("cartpole", "acrobot")
BY_LENGTH: tuple[TaskName, ...] = (*STUDY, "mountain-car")
"""Tasks on which every step has the same true reward, so that an episode's return is its length."""
SAME_LENGTH: tuple[TaskName, ...] = ("cartpole-fixed", "acrobot-fixed", "pendulum", "catch")
"""Tasks on which all episodes have the same length."""
LONG: tuple[TaskName, ...] = (*STUDY, "cartpole-fixed", "acrobot-fixed", "pendulum")
"""Tasks whose episodes are long enough for clips."""
DETAILS: tuple[TaskName, ...] = ("cartpole-fixed", "pendulum")
"""Two fast tasks for questions about details. Their episodes have the same length, so one bit does not explain the
reward."""


class Claim(NamedTuple):
    """A section of the page. Alternatives stand in braces: "{dpo|rlhf} above pi2" is two comparisons."""

    title: str
    text: str
    tasks: tuple[TaskName, ...]
    shown: str  # Arms, from top to bottom. What is compared is among them, or is pi2.
    expected: str  # An arm ends "above" a baseline, or "not below" it, or, as a control, with "no gain" on it.
    columns: str  # Further columns of the arms' table.

    @property
    def arms(self) -> list[str]:
        return [name for pattern in self.shown.split() for name in _expand(pattern)]

    @property
    def comparisons(self) -> list[dict[str, str]]:
        lines = [line.split() for pattern in self.expected.split(",") for line in _expand(pattern)]
        return [{"arm": arm, "expectation": " ".join(middle), "baseline": last} for arm, *middle, last in lines]


def _expand(pattern: str) -> list[str]:
    parts = (part.split("|") for part in re.split("[{}]", pattern))
    return ["".join(choice) for choice in itertools.product(*parts)]


_TEACHERS = "{hesitant|mistakes-20%|mistakes-40%|ties|myopic}"
_LOSSES = "{sigmoid|hinge|ipo|sigmoid_per_step|ipo_per_step}"
_WITH_MISTAKES = "{sigmoid|robust|ipo_per_step}"
CLAIMS: dict[ClaimName, Claim] = {
    "gain": Claim(
        "What do DPO and PPO-RLHF gain from preferences alone?",
        "The reference is pi2, which is also the initial policy, so only the 200 pairs say what is better. Both "
        "methods are expected to end above pi2 and pi1, and DPO above imitation of the chosen episodes (cloning). "
        "`rlhf-true` is PPO on the environment's own reward, the ceiling.",
        get_args(TaskName),
        "pi2 pi1 dpo cloning rlhf rlhf-true",
        "{dpo|rlhf} above pi2, {dpo|rlhf} above pi1, dpo above cloning",
        "kl heldout_accuracy length_accuracy",
    ),
    "bit": Claim(
        "What does one bit explain where the return is the length of an episode?",
        "On these tasks each step has the same true reward: +1 on CartPole, -1 on the others. Only the step that ends "
        "Acrobot has 0. So a reward model with nothing but its bias (`-bias`) has one number to learn, and in truth "
        "only its sign. It is expected to do as "
        "well as the whole reward model: with few pairs and with 20 % wrong labels, too. `-plus` and `-minus` are "
        "rewards of +1 and -1 for each step, without any preference.",
        BY_LENGTH,
        "pi2 rlhf rlhf-{plus|minus|bias} rlhf-10 rlhf-bias-10 rlhf-mistakes-20% rlhf-bias-mistakes-20%",
        "rlhf-bias not below rlhf, rlhf-bias-10 not below rlhf-10, rlhf-bias-mistakes-20% not below rlhf-mistakes-20%",
        "explained heldout_accuracy length_accuracy",
    ),
    "same-length": Claim(
        "What does one bit explain where all episodes have the same length?",
        "At a fixed horizon an episode goes on after its end, with a reward of 0. There, and on Pendulum and Catch, "
        "the length of an episode says nothing. No constant reward is expected to gain, learned or not.",
        SAME_LENGTH,
        "pi2 rlhf rlhf-{plus|minus|bias}",
        "rlhf-{plus|minus|bias} no gain pi2",
        "explained heldout_accuracy length_accuracy",
    ),
    "harm": Claim(
        "Do few pairs or wrong labels hurt?",
        "With 10 pairs, and with 200 pairs of which 20 % have a wrong label, both methods are expected to end above "
        "the policy that they started from.",
        get_args(TaskName),
        "pi2 {dpo|rlhf}-{10|mistakes-20%}",
        "{dpo|rlhf}-{10|mistakes-20%} above pi2",
        "kl heldout_accuracy length_accuracy",
    ),
    "controls": Claim(
        "What does reference pi1 hide?",
        "The original study pulls the policy to pi1 by a KL penalty of weight 10 (`-original-ppo`: its PPO settings, "
        "this study's experts and reward models). There a reward of zero is expected to do as well as the learned "
        "one. With reference pi2, no control is expected to gain: no reward of zero or of a random network, no labels "
        "from a coin.",
        STUDY,
        "pi2 pi1 rlhf-pi1-original-ppo{|-zero} rlhf{|-zero|-random|-coin} dpo{|-coin}",
        "rlhf-pi1-original-ppo-zero not below rlhf-pi1-original-ppo, rlhf-pi1-original-ppo-zero above pi2, "
        "rlhf-{zero|random|coin} no gain pi2, dpo-coin no gain pi2, rlhf above rlhf-zero, dpo above dpo-coin",
        "explained",
    ),
    "critic": Claim(
        "Does a critic that was trained on the true reward leak it?",
        "PPO starts with a value head of zero. The arm `-kept-critic` keeps pi2's value head, which was trained on the "
        "true reward, and maximises a reward of zero. It is expected to gain nothing.",
        STUDY,
        "pi2 rlhf-zero rlhf-zero-kept-critic",
        "rlhf-zero-kept-critic no gain pi2",
        "kl",
    ),
    "pairs": Claim(
        "How many pairs are needed to pass pi1?",
        "More pairs are expected to help, and ten to be enough to pass pi1. 1,000 pairs have more steps than 200 pairs "
        "and PPO together. PPO-RLHF with 200 pairs is expected to be better than DPO with 1,000.",
        STUDY,
        "pi2 pi1 {dpo|rlhf}{-10|-50||-1000}",
        "{dpo|rlhf}-{10|50|1000} above pi1, dpo-1000 above dpo-10, rlhf-1000 above rlhf-10, rlhf above dpo-1000",
        "heldout_accuracy length_accuracy",
    ),
    "clips": Claim(
        "What do clips cost?",
        "The annotator compares clips of 25 steps, each from a random place of its episode, in place of whole "
        "episodes. On CartPole and Acrobot most clips are worth the same, and then a coin answers. Both methods are "
        "expected to gain from clips, and to end no lower than with whole episodes.",
        LONG,
        "pi2 dpo dpo-clips rlhf rlhf-clips",
        "{dpo|rlhf}-clips above pi2, dpo-clips not below dpo, rlhf-clips not below rlhf",
        "kl label_entropy heldout_accuracy length_accuracy",
    ),
    "equal": Claim(
        "Is PPO-RLHF better, or does it only move further and play more?",
        "PPO plays 123,000 steps, DPO none, and their policies are not equally far from pi2. `-equal-kl` has another "
        "KL penalty, with which PPO's KL is about DPO's. `-short` plays a tenth of the steps. PPO-RLHF is expected to "
        "be better all the same.",
        LONG,
        "pi2 dpo rlhf rlhf-equal-kl rlhf-short",
        "rlhf above dpo, rlhf-{equal-kl|short} above dpo",
        "kl",
    ),
    "updates": Claim(
        "Does DPO train too long, and what stops it?",
        "The loss of version 0.1.0 (`-conservative`: beta 0.1) has no term that keeps the chosen steps likely. With 10 "
        "pairs, its training is expected to hurt when it is four times as long (`-long`). Long training "
        "with today's loss is not expected to hurt.",
        STUDY,
        "pi2 dpo-10 dpo-long-10 dpo-conservative-10 dpo-conservative-long-10",
        "dpo-long-10 above pi2, dpo-long-10 not below dpo-10, dpo-conservative-10 above pi2, "
        "dpo-conservative-10 above dpo-conservative-long-10, dpo-10 above dpo-conservative-10",
        "kl heldout_accuracy",
    ),
    "experts": Claim(
        "Do the gains depend on who trained the experts?",
        "pi1 and pi2 by the original study's REINFORCE (`-original-experts`), and by PPO. Both methods are expected to "
        "end above the pi2 that they started from: DPO with 10, 50, 200 and 1,000 pairs, PPO-RLHF with 10 and 200. "
        "With 200 pairs both are expected to end above pi1.",
        STUDY,
        "{pi2|pi1|dpo|rlhf}-original-experts dpo-original-experts-{10|50|1000} rlhf-original-experts-10 "
        "{pi2|pi1|dpo|rlhf}-ppo-experts dpo-ppo-experts-{10|50|1000} rlhf-ppo-experts-10",
        "dpo-original-experts{|-10|-50|-1000} above pi2-original-experts, "
        "rlhf-original-experts{|-10} above pi2-original-experts, "
        "{dpo|rlhf}-original-experts above pi1-original-experts, "
        "dpo-ppo-experts{|-10|-50|-1000} above pi2-ppo-experts, rlhf-ppo-experts{|-10} above pi2-ppo-experts, "
        "{dpo|rlhf}-ppo-experts above pi1-ppo-experts",
        "kl heldout_accuracy length_accuracy",
    ),
    "annotators": Claim(
        "How do noise and ties hurt?",
        "Annotators hesitate (temperature: a tenth of the range of returns), make 20 or 40 % mistakes, tie returns "
        "closer than a tenth of the range, or discount later steps (0.98 per step). Hesitation, 20 % mistakes and the "
        "discount are expected to hurt, and ties to do little harm. With 40 % mistakes a gain over pi2 is expected.",
        DETAILS,
        f"pi1 dpo dpo-{_TEACHERS} rlhf rlhf-{_TEACHERS}",
        "{dpo|rlhf}-mistakes-40% above pi2, dpo above dpo-mistakes-20%, rlhf above rlhf-mistakes-20%, "
        "dpo-ties not below dpo, rlhf-ties not below rlhf, "
        "dpo above dpo-{hesitant|myopic}, rlhf above rlhf-{hesitant|myopic}",
        "label_entropy label_accuracy best_accuracy heldout_accuracy length_accuracy",
    ),
    "online": Claim(
        "Offline or online?",
        "Online, the policy in training plays the pairs: five rounds of 40 questions, against 200 offline about pi1 "
        "and pi2. Online RLHF fits three reward models in each round. Online is expected to be no worse than offline.",
        DETAILS,
        "pi2 pi1 dpo online-dpo rlhf online-rlhf",
        "online-{dpo|rlhf} above pi2, online-dpo not below dpo, online-rlhf not below rlhf",
        "kl heldout_accuracy length_accuracy",
    ),
    "losses": Claim(
        "Which loss?",
        "DPO on right labels, and with some losses on 20 % wrong ones. Each loss has one beta. That of the default was "
        "chosen on five tasks, Pendulum among them, those of the others on CartPole and Acrobot. The default loss "
        "smooths labels by 5 % and keeps the chosen steps likely. Robust DPO knows the share of wrong labels. The "
        "default is expected to be no worse than any other loss here.",
        DETAILS,
        f"pi1 dpo dpo-{_LOSSES} dpo-mistakes-20% dpo-mistakes-20%-{_WITH_MISTAKES}",
        f"dpo not below dpo-{_LOSSES}, dpo-mistakes-20% not below dpo-mistakes-20%-{_WITH_MISTAKES}",
        "kl heldout_accuracy length_accuracy heldout_negative_log_likelihood heldout_calibration_error",
    ),
    "rewards": Claim(
        "Can the reward models be trusted?",
        "Rewards are judged on fresh pairs of pi1 and pi2, and on the final policy's own episodes. DPO's reward is "
        "beta times the log-ratio to the reference. An ensemble of three is expected to be no worse than one model. A "
        "model without weight decay (`-no-decay`) is expected to be worse where 20 % of the labels are wrong, and no "
        "better where all are right.",
        DETAILS,
        "dpo rlhf-10 rlhf rlhf-ensemble rlhf-no-decay rlhf-mistakes-20%{|-no-decay}",
        "rlhf-ensemble not below rlhf, rlhf not below rlhf-no-decay, "
        "rlhf-mistakes-20% above rlhf-mistakes-20%-no-decay",
        "heldout_accuracy length_accuracy heldout_negative_log_likelihood "
        "heldout_calibration_error heldout_rank_correlation own_rank_correlation",
    ),
}
