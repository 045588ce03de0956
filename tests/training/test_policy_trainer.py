"""Policies of step sizes are rolled out, rewarded, trained, stopped and continued."""

import itertools
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.build.data import resolve_vocabulary
from flm_jax.build.load import load_model
from flm_jax.build.model import make_network
from flm_jax.checkpoints.config_file import write_config
from flm_jax.checkpoints.workdir import save_ema
from flm_jax.config.check import check, check_policy
from flm_jax.config.schema import base_config, choose, policy_config
from flm_jax.core.errors import Stopped, UserError
from flm_jax.core.network import Network
from flm_jax.data.tasks.registry import make_task
from flm_jax.inference import task_problems
from flm_jax.inference.step_policy import StepPolicy, load_step_policy
from flm_jax.losses.grpo import Actions, group_advantages, token_rewards
from flm_jax.models import step_policy
from flm_jax.samplers import x_prediction
from flm_jax.samplers.base import Given, nothing_given
from flm_jax.samplers.x_prediction import XPredictionConfig
from flm_jax.training import policy_trainer, task_rewards
from helpers.networks import POLICY


# Rollouts, of a network that is sure of token l at position l.
def oracle(length=4, vocab=6, confidence=0.97):
    probs = np.full((length, vocab), (1 - confidence) / (vocab - 1))
    probs[np.arange(length), np.arange(length)] = confidence
    logits = jnp.asarray(np.log(probs), jnp.float32)
    return Network(
        init=lambda key: {},
        features=lambda params, x, s, t, key=None: jnp.broadcast_to(logits[None], x.shape),
        readout=lambda params: (jnp.eye(vocab), jnp.zeros(vocab)),
        table=lambda params: jnp.eye(vocab),
        vocab_size=vocab,
        dim=vocab,
        max_length=length,
        anchor=lambda params: jnp.full((length, vocab), 1 / vocab),
    )


def test_a_rollout_of_fixed_steps_is_the_sampler():
    given = Given(jnp.array([[5, 0, 0, 0]] * 2), jnp.array([[True, False, False, False]] * 2))
    how = XPredictionConfig(step_size=0.4)
    settings = dict(steps=3, given=given, how=how, time_conditioning=False)
    act = lambda key, features: (jnp.full((2, 4), 0.4), features[..., 6])
    rolled = jax.jit(
        lambda: x_prediction.rollout(jax.random.key(0), oracle(), {}, act, **settings)
    )()
    want = jax.jit(lambda: x_prediction.sample_x_prediction(oracle(), {}, **settings))()
    np.testing.assert_array_equal(rolled.tokens, want.tokens)
    assert rolled.calls.tolist() == [3, 3] and rolled.features.shape == (3, 2, 4, 8)
    # One is written a call; the last one by the end of the calls, which progress does not count.
    assert rolled.moves.sum(axis=2).tolist() == [[3, 3], [2, 2], [1, 1]]
    np.testing.assert_array_equal(rolled.acts[1], want.steps_progress[0])
    assert (rolled.reached <= 1.0).all()
    slow = settings | {"how": XPredictionConfig(step_size=0.4, hard_commit=False)}
    rolled = jax.jit(lambda: x_prediction.rollout(jax.random.key(0), oracle(), {}, act, **slow))()
    np.testing.assert_allclose(rolled.reached[:, 1:], 1 - 0.6**3, rtol=1e-5)


def test_calls_that_were_not_made_teach_nothing():
    """All is written in two calls of five; updates are as if there were no more."""
    made, updates = step_policy.policy(POLICY), []
    params = made.init(jax.random.key(0))
    given = Given(jnp.zeros((4, 4), jnp.int32), jnp.arange(4)[None] >= jnp.array([[2]] * 4))
    for calls in (2, 5):
        act = policy_trainer.actor(StepPolicy(POLICY, made, params))
        more = dict(steps=calls, given=given, how=XPredictionConfig(), time_conditioning=False)

        @jax.jit
        def grads(key, act=act, more=more):
            rolled = x_prediction.rollout(key, oracle(), {}, act, **more)
            seen = rolled.features.at[..., 7].set(0.0)  # rho alone is of the budget
            actions = Actions(seen, *rolled.acts, rolled.moves)
            loss = lambda p: policy_trainer.policy_loss(p, made, actions, jnp.ones((4, 4)), 0.2)
            return jax.grad(loss, has_aux=True)(params)[0], rolled.calls, rolled.moves

        found, used, moves = grads(jax.random.key(0))
        assert used.tolist() == [2] * 4 and not moves[2:].any()
        updates.append(found)
    for a, b in zip(*map(jax.tree.leaves, updates)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_rewarded_progress_makes_steps_longer():
    """The whole chain: rollouts, rewards of tokens, updates; nothing else is rewarded."""
    made, cfg = step_policy.policy(POLICY), POLICY
    given, group = nothing_given(32, 4), 8
    how = XPredictionConfig(hard_commit=False, re_edit=False)

    @jax.jit
    def step(params, key):
        act = policy_trainer.actor(StepPolicy(cfg, made, params))
        settings = dict(steps=2, given=given, how=how, time_conditioning=False)
        rolled = x_prediction.rollout(key, oracle(), {}, act, **settings)
        rewards = token_rewards(jnp.zeros(32), rolled.reached, 1.0)
        actions = Actions(rolled.features, *rolled.acts, rolled.moves)
        advantages = group_advantages(rewards, group)
        loss = lambda p: policy_trainer.policy_loss(p, made, actions, advantages, 0.2)
        grads = jax.grad(loss, has_aux=True)(params)[0]
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, grads), rolled.reached.mean()

    params = made.init(jax.random.key(0))
    reached = []
    for number in range(30):
        params, mean = step(params, jax.random.key(number))
        reached.append(float(mean))
    assert np.mean(reached[-5:]) > np.mean(reached[:3]) + 0.03


# Whole runs, on sums of one digit, of a model that was not trained.
@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = base_config()
    choose(config, model="llama", objective="masked_diffusion")
    config.data.task = "arithmetic1"
    config.model.length, config.model.dim, config.model.depth = 6, 32, 1
    config.model.heads, config.model.attention_softcap, config.model.logit_softcap = 2, 0.0, 0.0
    task = make_task("arithmetic1")
    config = resolve_vocabulary(check(config), task.tokenizer)
    folder = tmp_path_factory.mktemp("policy") / "model"
    write_config(folder, config)
    task.tokenizer.save(folder / "tokenizer")
    params = make_network(config).init(jax.random.key(0))
    save_ema(folder, params, 0, {})
    return str(folder)


def even(task):
    """The answer's last digit is even: such as anyone would get in half of the cases."""
    return lambda tokens, asked, given: (tokens[:, -1] % 2 == 0).astype(np.float32)


def tiny(folder, **values):
    config = policy_config()
    config.model, config.calls, config.prompts = folder, (2,), 200
    config.prompt_batch, config.group, config.optim.warmup_steps = 2, 4, 0
    config.train.steps, config.train.checkpoint_every, config.train.log_every = 4, 2, 1
    config.update_from_flattened_dict(values)
    return check_policy(config)


def test_a_policy_is_trained_continued_and_used(model, tmp_path, monkeypatch):
    monkeypatch.setitem(task_rewards.REWARDS, "exact_match", even)
    policy_trainer.train_policy_run(tiny(model), str(tmp_path / "whole"))
    policy_trainer.train_policy_run(tiny(model, **{"train.steps": 2}), str(tmp_path / "parts"))
    policy_trainer.train_policy_run(tiny(model), str(tmp_path / "parts"))
    whole, parts = (load_step_policy(str(tmp_path / name)) for name in ("whole", "parts"))
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params)):
        np.testing.assert_array_equal(a, b)
    fresh = whole.made.init(jax.random.key(0))
    assert any(
        np.any(a != b) for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(fresh))
    )
    loaded = load_model(model)
    sampler = XPredictionConfig(policy=str(tmp_path / "whole"))
    settings = (loaded, task_problems.task_of(loaded), 20, 2, 20, 0)
    assert 0.0 <= task_problems.solve(*settings, sampler)[0]["solved"] <= 1.0
    with pytest.raises(UserError, match="expected one of train_policy"):
        task_problems.solve(*settings, XPredictionConfig(policy=model))
    with pytest.raises(UserError, match="another group"):
        policy_trainer.train_policy_run(tiny(model, group=8), str(tmp_path / "whole"))


def test_sigterm_saves_and_the_run_continues_bit_for_bit(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(task_rewards.REWARDS, "exact_match", even)
    config = tiny(model, **{"train.steps": 3, "train.checkpoint_every": 100})
    before = signal.getsignal(signal.SIGTERM)
    assert policy_trainer.train_policy_run(config, str(tmp_path / "whole")) == 0
    assert signal.getsignal(signal.SIGTERM) is before

    def stopped(task):
        """As `even`; SIGTERM comes at its third call, which is in the second step."""
        calls, reward = itertools.count(1), even(task)

        def called(*rows):
            if next(calls) == 3:
                assert signal.getsignal(signal.SIGTERM) is not before
                signal.raise_signal(signal.SIGTERM)
            return reward(*rows)

        return called

    with monkeypatch.context() as patched:
        patched.setitem(task_rewards.REWARDS, "exact_match", stopped)
        with pytest.raises(Stopped):
            policy_trainer.train_policy_run(config, str(tmp_path / "parts"))
    assert "SIGTERM: saved step 2; run the same command" in capsys.readouterr().out
    assert policy_trainer.train_policy_run(config, str(tmp_path / "parts")) == 0
    output = capsys.readouterr().out
    assert "step 3/3" in output and "step 1/3" not in output
    whole, parts = (load_step_policy(str(tmp_path / name)) for name in ("whole", "parts"))
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params)):
        np.testing.assert_array_equal(a, b)


def test_rewards_are_for_exact_answers(model):
    task = task_problems.task_of(load_model(model))
    asked, given = task.problems(4, 0)
    right = task.write(asked[:, 0], asked[:, 2])
    wrong = right.copy()
    wrong[1, -1] = (wrong[1, -1] + 1) % 10
    wrong[2, 0] = (wrong[2, 0] + 1) % 10
    reward = task_rewards.exact_match(task)
    assert reward(wrong, asked, given).tolist() == [1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"group": 1}, "config.group"),
        ({"calls": ()}, "config.calls"),
        ({"model": ""}, "config.model is ''"),
        ({"reward": "tests"}, "unknown config.reward 'tests'"),
        ({"reward": "unit_tests"}, "are no programs"),
        ({"prompts": 3, "prompt_batch": 4}, "solves"),
        ({"policy.start": 0.99}, "reach from"),
    ],
)
def test_bad_runs_are_refused(model, tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        policy_trainer.train_policy_run(tiny(model, **values), str(tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()


def test_steps_that_are_not_finite_change_nothing(model, tmp_path, monkeypatch):
    def spoilt(task):
        """Finite where problems are chosen, and not a number in every step."""
        calls, reward = itertools.count(), even(task)
        return lambda *rows: reward(*rows) * (np.nan if next(calls) else 1.0)

    monkeypatch.setitem(task_rewards.REWARDS, "exact_match", spoilt)
    config = tiny(model, epochs=1, **{"train.max_skipped": 2})
    with pytest.raises(UserError, match="2 steps in a row had a non-finite loss or gradient"):
        policy_trainer.train_policy_run(config, str(tmp_path))
    assert list(tmp_path.glob("bad_batch_2*.npz"))


def test_meshes_agree(model, tmp_path, monkeypatch):
    """One device after the other, answers over all of them, and the model's parameters as well."""
    monkeypatch.setitem(task_rewards.REWARDS, "exact_match", even)
    found = {}
    for name, mesh in (("data", {}), ("fsdp", {"mesh.data": 2, "mesh.fsdp": 4})):
        config = tiny(model, **({"train.steps": 2} | mesh))
        assert policy_trainer.train_policy_run(config, str(tmp_path / name)) == 0
        found[name] = load_step_policy(str(tmp_path / name)).params
    for a, b in zip(jax.tree.leaves(found["data"]), jax.tree.leaves(found["fsdp"])):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)
    with pytest.raises(UserError, match="is 4, which does not split over 8 devices"):
        policy_trainer.train_policy_run(
            tiny(model, prompt_batch=1, group=4), str(tmp_path / "uneven")
        )
