"""From the command line to settings: what flags mean, what is refused, and the words of the refusal."""

import dataclasses
import itertools
import shlex
from pathlib import Path
from typing import get_args

import pytest

import jaxpref
from experiments import study as study_script
from experiments.harness import cli
from experiments.harness.errors import UsageError
from experiments.pipeline.command import check_unused
from experiments.pipeline.command import parse as parse_words
from experiments.pipeline.pipeline import task_of
from experiments.pipeline.settings import Method, default_settings, from_config, to_flags


def parse(line, task="cartpole", method="dpo"):
    return parse_words(shlex.split(line), "run", task, method)


# --- what flags mean --------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_contracts():
    for task, method in itertools.product(("cartpole", "acrobot"), ("dpo", "rlhf")):
        settings = parse("", task, method)
        assert (settings.task, settings.method) == (task, method)
        assert settings.seeds == (35, 42, 100)
        assert settings.num_pairs == (10, 50, 200, 1000)
        assert settings.reference == ("pi1", "pi2")
        assert settings.out == Path("results") / f"{task}-{method}"
        # The library's own settings, one set for both tasks.
        for name in ("reinforce", "dpo", "reward_model", "ppo"):
            assert getattr(settings, name) == getattr(jaxpref, name).Config()
        assert (settings.experts, settings.expert_config) == ("reinforce", settings.reinforce)


@pytest.mark.parametrize(
    ("flags", "path", "value"),
    [
        ("--dpo.beta 0.3", "dpo.beta", 0.3),
        ("--dpo.loss hinge", "dpo.loss", "hinge"),
        ("--seeds 1 4294967295", "seeds", (1, 4294967295)),
        ("--reference pi2", "reference", ("pi2",)),
        ("--out some/where", "out", Path("some/where")),
        ("--save-preferences", "save_preferences", True),
        ("--reinforce.baseline handmade", "reinforce.baseline", "handmade"),
        ("--ppo.no-reset-value", "ppo.reset_value", False),
        ("--return-range 0 5", "return_range", (0.0, 5.0)),
        ("--experts ppo", "experts", "ppo"),
        ("--expert-ppo.learning-rate 0.01", "expert_ppo.learning_rate", 0.01),
        ("--fixed-horizon", "fixed_horizon", True),
        ("--segment 25", "segment", 25),
    ],
)
def test_a_flag_changes_what_it_names_and_nothing_else(flags, path, value):
    def flatten(settings):
        flat = {}
        for name, content in dataclasses.asdict(settings).items():
            flat |= {f"{name}.{k}": v for k, v in content.items()} if isinstance(content, dict) else {name: content}
        return flat

    before, after = flatten(parse("")), flatten(parse(flags))
    assert before[path] != value
    assert after == before | {path: value}


def test_the_original_preset_has_the_originals_numbers():
    for task, method in itertools.product(("cartpole", "acrobot"), ("dpo", "rlhf")):
        settings, acrobot = parse("--preset original", task, method), task == "acrobot"
        assert settings.reference == ("pi1",)
        assert settings.annotator.temperature == 1
        expert = settings.reinforce
        assert expert.num_updates == (3000 if acrobot else 1200)
        assert (expert.episodes_per_update, expert.score_window) == (1, 50)
        assert (expert.learning_rate, expert.gamma) == (3e-3, 0.99)
        assert expert.score_shaping == acrobot
        assert (expert.baseline, expert.shape_reward, expert.normalise_advantage) == ("handmade", acrobot, False)
        assert (expert.ent_coef, expert.policy_scale) == (0, 1)
        direct = settings.dpo
        assert (direct.batch_size, direct.learning_rate, direct.loss) == (0, 1e-2, "sigmoid")
        assert (direct.beta, direct.num_updates) == ((5, 120) if acrobot else (0.5, 300))
        model = settings.reward_model
        assert (model.batch_size, model.learning_rate, settings.reward_model_epochs) == (1, 1e-2, 50)
        rlhf = settings.ppo
        assert (rlhf.num_updates, rlhf.num_epochs, rlhf.num_envs * rlhf.num_steps) == (100, 4, 2000)
        assert rlhf.num_envs * rlhf.num_steps // rlhf.num_minibatches == 64
        assert (rlhf.learning_rate, rlhf.gamma, rlhf.gae_lambda, rlhf.clip_eps) == (3e-4, 0.98, 0.8, 0.2)
        assert (rlhf.vf_coef, rlhf.ent_coef, rlhf.max_grad_norm) == (0.5, 0.01, 0.5)
        assert (rlhf.kl_penalty, rlhf.kl_coef) == ("loss", 10)
        assert not rlhf.reset_value  # the original kept the critic


def test_a_preset_gives_the_defaults_wherever_it_stands():
    for line in ("--preset original --dpo.beta 0.2", "--dpo.beta 0.2 --preset original"):
        settings = parse(line)
        assert (settings.dpo.beta, settings.dpo.learning_rate) == (0.2, 1e-2)
    assert parse("--preset original").out != parse("").out


def test_task_and_method_choose_the_defaults_of_the_script_that_names_neither():
    settings = parse("--task acrobot --seeds 3 --method rlhf --preset original", None, None)
    assert (settings.experiment, settings.seeds) == ("acrobot-rlhf", (3,))
    assert settings == parse("--seeds 3 --preset original", "acrobot", "rlhf")


@pytest.mark.parametrize("task", ["MountainCar-v0", "Pendulum-v1"])
def test_a_task_of_gymnax_has_the_same_numbers_and_experts_by_ppo(task):
    settings = parse("", task)
    assert settings == dataclasses.replace(parse(""), task=task, out=Path("results") / f"{task}-dpo", experts="ppo")
    assert settings.expert_config == jaxpref.expert_ppo.DEFAULTS
    assert parse("--experts reinforce", task).expert_config == jaxpref.reinforce.Config()


def test_episodes_of_one_length_are_a_property_of_the_task():
    fixed = task_of(parse("--horizon 50 --fixed-horizon", "Pendulum-v1"))
    assert fixed == jaxpref.task("Pendulum-v1", 50, fixed_horizon=True)
    assert fixed != task_of(parse("--horizon 50", "Pendulum-v1"))


def test_flags_and_config_give_the_same_settings_again():
    for line, task in (
        ("--seeds 1 2 --dpo.beta 0.3 --save-preferences --ppo.no-reset-value --preset original", "cartpole"),
        ("--experts ppo --expert-ppo.num-updates 30 --fixed-horizon --segment 25", "acrobot"),
        ("--experts reinforce --reinforce.gamma 0.9", "Pendulum-v1"),
    ):
        settings = parse(line, task)
        assert parse_words(to_flags(settings), "run") == settings
        assert from_config(dataclasses.asdict(settings)) == settings


def test_the_studys_folder_is_the_parent_of_its_experiments():
    four = ["cartpole-dpo", "cartpole-rlhf", "acrobot-dpo", "acrobot-rlhf"]
    runs = study_script.settings_of(shlex.split("--seeds 5 --out some/where"))
    assert [settings.out for settings in runs] == [Path("some/where") / name for name in four]
    assert [settings.experiment for settings in runs] == four
    assert {settings.seeds for settings in runs} == {(5,)}


@pytest.mark.parametrize(
    ("task", "horizon", "targets", "return_range"),
    [
        ("cartpole", 50, (47.5, 23.75), (0, 50)),
        ("acrobot", 100, (None, None), (-100, 0)),
        ("MountainCar-v0", 300, (None, None), (-300, 0)),
    ],
)
def test_targets_and_range_are_those_of_the_horizon(task, horizon, targets, return_range):
    made = task_of(parse(f"--horizon {horizon}", task))
    assert made.horizon == horizon
    assert ((made.pi1_target, made.pi2_target), made.return_range) == (targets, return_range)
    assert task_of(parse(f"--horizon {horizon} --return-range 1 2", task)).return_range == (1, 2)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--num-pairs 10 -5", "--num-pairs must be between 1 and 1000000, got -5"),
        ("--num-pairs 8 4 8", "--num-pairs needs each value once, got 8 4 8"),
        ("--seeds", "--seeds needs at least one value"),
        ("--seeds -1", "--seeds must be between 0 and 4294967295, got -1"),
        ("--eval-episodes 0", "--eval-episodes must be between 1 and 1000000, got 0"),
        ("--horizon 0", "--horizon must be at least 1, got 0"),
        ("--segment 0", "--segment must be at least 1, got 0"),
        ("--expert-ppo.num-envs 0", "--expert-ppo.num-envs must be at least 1, got 0"),
        ("--annotator.temperature -1", "--annotator.temperature must be at least 0, got -1"),
        ("--dpo.beta nan", "--dpo.beta must be"),
        ("--dpo.label-smoothing 0.7", "--dpo.label-smoothing must be .*0.5.*0.7"),
        ("--dpo.num-updates 7", "--dpo.num-updates must be a multiple of .*eval.every.* 7"),
        ("--reinforce.gamma 2", "--reinforce.gamma must be between 0 and 1, got 2"),
        ("--ppo.num-minibatches 9999", "--ppo.num-minibatches .*9999"),
        ("--dpo.batch-size 1000001", "--dpo.batch-size and --reward-model.batch-size must be at most 1,000,000"),
        ("--dpo.eval-episodes 0", "--dpo.eval-episodes must be at least 1"),
        ("--return-range 5 0", "--return-range must be LOWEST HIGHEST, got 5.0 0.0"),
        ("--return-range 0 inf", "--return-range must be LOWEST HIGHEST, got 0.0 inf"),
        ("--pi1-target nan", "--pi1-target must be a finite float32, got nan"),
        ("--devices -1", "--devices must be between 0 and 1024, got -1"),
        ("--processes 2", "--processes and --coordinator"),
        ("--processes 2 --coordinator localhost:1 --process 2", "--process must be less than --processes, 2, got 2"),
        ("--processes 2 --coordinator here", "--coordinator must be HOST:PORT, got here"),
        ("--reward-model.holdout-every 1001", "--reward-model.holdout-every must be at most .* 1000"),
        ("--method online-dpo --online.num-rounds 7", "--num-pairs must be multiples of --online.num-rounds, 7"),
        ("--method online-dpo --dpo.num-updates 30", "--dpo.num-updates must be a multiple of --online.num-rounds *"),
        ("--preferences labels.jsonl", "--preferences and --pairs, the file that they are about, need each other"),
        ("--method online-dpo --preferences a --pairs b", "--preferences has no effect on online-dpo"),
        ("--preset original --task Catch-bsuite", "--preset original has no Catch-bsuite"),
    ],
)
def test_settings_out_of_range_are_one_sentence_with_the_flag(line, message):
    with pytest.raises(UsageError, match=message) as error:
        parse(line)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--annotator.tie-threshold 0.1", "--annotator.tie-threshold .* --return-range"),
        ("--reinforce.baseline handmade", "--reinforce.baseline handmade needs"),
        ("--network conv --task cartpole", "--network conv needs images"),
        ("--pi1-target 1 --pi2-target 2", "--pi1-target must be above --pi2-target"),
        ("--task pong", "unknown task 'pong'"),
        ("--task CartPole-v0", "cartpole"),
    ],
)
def test_what_only_the_task_can_refuse_is_one_sentence(line, message):
    with pytest.raises(ValueError, match=message):
        task_of(parse(line, "Breakout-MinAtar"))


@pytest.mark.parametrize(
    ("line", "method", "message"),
    [
        ("--ppo.kl-coef 1", "dpo", "--ppo.kl-coef has no effect on dpo"),
        ("--dpo.beta 1", "rlhf", "--dpo.beta has no effect on rlhf"),
        ("--online.num-rounds 10", "rlhf", "--online.num-rounds has no effect on rlhf"),
        ("--online.disagreement 0", "online-dpo", "--online.disagreement has no effect on online-dpo"),
        ("--reward zero", "dpo", "--reward has no effect on dpo"),
        ("--num-members 3", "online-rlhf", "--num-members has no effect on online-rlhf"),
        ("--expert-ppo.gamma 0.9", "dpo", "--expert-ppo.gamma has no effect on --experts reinforce"),
        ("--experts ppo --reinforce.gamma 0.9", "rlhf", "--reinforce.gamma has no effect on --experts ppo"),
        ("--task Pendulum-v1 --reinforce.gamma 0.9", "dpo", "--reinforce.gamma has no effect on --experts ppo"),
    ],
)
def test_a_flag_without_effect_is_refused(line, method, message):
    with pytest.raises(UsageError, match=f"^{message}$"):
        check_unused(parse(line, "cartpole", method))


@pytest.mark.parametrize("method", get_args(Method))
def test_the_default_settings_have_no_flag_without_effect(method):
    for task in ("cartpole", "Pendulum-v1"):
        check_unused(default_settings(task, method))
    check_unused(parse("--experts ppo --expert-ppo.gamma 0.9", "cartpole", method))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--bogus 3", ["--bogus"]),
        ("--dpo.bta 0.3", ["--dpo.bta", "--dpo.beta"]),
        ("--dpo.optimiser adam", ["--dpo.optimiser"]),  # a function, and so no flag
        ("--seeds 1.5", ["--seeds", "1.5"]),
        ("--reference pi3", ["--reference", "pi3"]),
        ("--preset best", ["--preset", "best", "original"]),
        ("--method sft", ["--method", "sft", "rlhf"]),
    ],
)
def test_tyro_refuses_what_cannot_be_read(capsys, line, words):
    with pytest.raises(SystemExit) as exit:
        parse(line)
    assert exit.value.code == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message
    assert "Traceback" not in message


def test_task_and_method_are_required_where_the_script_names_none(capsys):
    with pytest.raises(SystemExit) as exit:
        parse("--seeds 1", None, None)
    assert exit.value.code == 2
    assert "--task" in capsys.readouterr().err


def test_help_shows_the_defaults_of_the_preset(capsys):
    with pytest.raises(SystemExit) as exit:
        parse("--preset original --help")
    assert exit.value.code == 0
    printed = capsys.readouterr().out
    assert "--dpo.beta FLOAT" in printed
    assert "--dpo.optimiser" not in printed
    assert "0.5" in printed


def test_a_flags_value_is_found_before_the_words_are_read():
    words = shlex.split("--seeds 1 2 --task acrobot --preset=original --out")
    assert [cli.given(words, name) for name in ("task", "preset", "out", "method")] == [
        "acrobot",
        "original",
        None,
        None,
    ]
