"""The claims: each says, before the data are seen, which arm is expected to end above which."""

import itertools
import re
from typing import Literal, NamedTuple

ClaimName = Literal["gain", "controls", "pairs", "annotators", "online", "losses", "rewards"]


class Claim(NamedTuple):
    """A section of the page. Alternatives stand in braces: "{dpo|rlhf} above pi2" is two comparisons."""

    title: str
    text: str
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


_TEACHERS = "{hesitant|mistakes-10%|mistakes-20%|mistakes-40%|ties|skips|myopic}"
_LOSSES = "{sigmoid|robust|hinge|ipo|sigmoid_per_step|ipo_per_step}"
CLAIMS: dict[ClaimName, Claim] = {
    "gain": Claim(
        "What do DPO and PPO-RLHF gain from preferences alone?",
        "The reference is pi2, which is also the initial policy, so only the 200 pairs say what is better. Both "
        "methods are expected to end above pi2 and pi1, and DPO above imitation of the chosen episodes (cloning).",
        "pi2 pi1 dpo cloning rlhf rlhf-true",
        "{dpo|rlhf} above pi2, {dpo|rlhf} above pi1, dpo above cloning",
        "kl",
    ),
    "controls": Claim(
        "What does reference pi1 hide?",
        "The original study pulls the policy to pi1 by a KL penalty of weight 10 (`-original-ppo`: its PPO settings, "
        "this study's experts and reward models). There a reward of zero is expected to do as well as the learned "
        "one. With reference pi2, no control is expected to gain: no reward of zero or of a random network, no labels "
        "from a coin. `-true` is PPO on the environment's own reward, the ceiling.",
        "pi2 pi2-again pi1 {rlhf-pi1|rlhf}-original-ppo{|-zero} rlhf-pi1{|-zero|-random|-coin|-true} "
        "rlhf{|-zero|-random|-coin|-true} dpo-pi1{|-coin} dpo{|-coin} cloning",
        "rlhf-pi1-original-ppo-zero not below rlhf-pi1-original-ppo, rlhf-pi1-original-ppo-zero above pi2, "
        "rlhf-{original-ppo-zero|zero|random|coin} no gain pi2, dpo-coin no gain pi2, "
        "rlhf above rlhf-zero, rlhf-pi1 above rlhf-pi1-zero, dpo above dpo-coin",
        "explained",
    ),
    "pairs": Claim(
        "How many pairs are needed to pass pi1?",
        "More pairs are expected to help, and 200 to be enough to pass pi1.",
        "pi2 pi1 {dpo|rlhf}{-10|-50||-1000}",
        "dpo{-10|-50||-1000} above pi1, dpo-1000 above dpo-10, rlhf{-10|-50||-1000} above pi1, rlhf-1000 above rlhf-10",
        "heldout_accuracy",
    ),
    "annotators": Claim(
        "How do noise, ties and skips hurt?",
        "Annotators hesitate (temperature: a tenth of the range of returns), make 10, 20 or 40 % mistakes, tie returns "
        "closer than a tenth of the range, skip pairs in which neither return reaches 70 % of it, or look mostly at "
        "the beginning (discount 0.98). Mistakes are expected to hurt, but 20 % not to undo the gain over pi2. Ties "
        "and skips are expected to do little harm.",
        f"pi1 dpo dpo-{_TEACHERS} rlhf rlhf-{_TEACHERS}",
        "{dpo|rlhf}-mistakes-{10|20|40}% above pi2, dpo above dpo-mistakes-20%, rlhf above rlhf-mistakes-20%, "
        "dpo-{ties|skips} not below dpo, rlhf-{ties|skips} not below rlhf, "
        "dpo above dpo-{hesitant|myopic}, rlhf above rlhf-{hesitant|myopic}",
        "label_entropy label_accuracy best_accuracy heldout_accuracy",
    ),
    "online": Claim(
        "Offline or online?",
        "Online, the policy in training plays the pairs: five rounds of 40 questions, against 200 offline about pi1 "
        "and pi2. RLHF asks about a quarter of the pairs that it plays: random ones, or those on which its ensemble "
        "disagrees most. Online is expected to be no worse than offline, and disagreement no worse than chance.",
        "pi2 pi1 dpo online-dpo rlhf rlhf-ensemble online-rlhf online-rlhf-disagreement",
        "online-{dpo|rlhf} above pi2, online-dpo not below dpo, online-rlhf not below rlhf, "
        "online-rlhf-disagreement not below online-rlhf",
        "kl heldout_accuracy",
    ),
    "losses": Claim(
        "Which loss?",
        "DPO on right labels, and on 20 % wrong ones, with one beta of each loss for both tasks. The default loss "
        "smooths labels by 5 %. Robust DPO is given the share of wrong labels (5 % where all are right). With wrong "
        "labels, both are expected to be no worse than the plain sigmoid.",
        f"pi1 dpo dpo-{_LOSSES} dpo-mistakes-20% dpo-mistakes-20%-{_LOSSES}",
        "dpo not below dpo-sigmoid, dpo-mistakes-20%{|-robust} not below dpo-mistakes-20%-sigmoid, "
        "dpo not below dpo-{robust|hinge|ipo|sigmoid_per_step|ipo_per_step}",
        "kl heldout_accuracy heldout_negative_log_likelihood heldout_calibration_error",
    ),
    "rewards": Claim(
        "Can the reward models be trusted?",
        "Rewards are judged on fresh pairs of pi1 and pi2; the final policy's episodes may differ. The true reward of "
        "a step is positive on CartPole and negative on Acrobot. An ensemble of three is expected to be no worse than "
        "one model, and a model without weight decay (`-no-decay`) to be worse where 20 % of the labels are wrong.",
        "dpo-10 dpo dpo-1000 rlhf-10 rlhf rlhf-1000 rlhf-ensemble rlhf-no-decay online-rlhf "
        "rlhf-mistakes-20%{|-ensemble|-no-decay}",
        "rlhf above pi2, rlhf-ensemble above pi2, rlhf-ensemble not below rlhf, rlhf not below rlhf-no-decay, "
        "rlhf-mistakes-20% above rlhf-mistakes-20%-no-decay, "
        "rlhf-mistakes-20%-ensemble not below rlhf-mistakes-20%",
        "positive_reward heldout_accuracy heldout_negative_log_likelihood heldout_calibration_error "
        "heldout_rank_correlation",
    ),
}
