"""Preference-based reinforcement learning as pure JAX functions: vmap them over seeds.

`import jaxpref` makes every submodule an attribute; the functions most used stand at the top.
"""

from jaxpref import (
    annotators,
    dpo,
    losses,
    networks,
    ppo,
    preferences,
    reinforce,
    returns,
    reward_model,
    rollout,
    tasks,
    training,
    types,
)
