"""What the x-prediction flows share (arXiv 2606.29066): small ones, LLaDA and LLaDA2.0."""

from configs.masked_flow.recipe import small_base
from flm_jax.config import base_config, choose, policy_config


def base():
    """A small masked diffusion model, of which files set the task, length, depth and steps."""
    config = small_base()
    config.model.dim = 96
    return config


def align(config, runs: str):
    """Changes `config`, of the base model in the folder `runs`, into its alignment."""
    choose(config, objective="alignment")
    config.objective.teacher = f"{runs}/base"
    config.data.generated = f"{runs}/own"
    config.optim.warmup_steps = 20
    config.train.steps = 400
    config.train.log_every = 50
    config.train.checkpoint_every = 200


def policy(runs: str):
    """A policy of step sizes for the aligned model in the folder `runs`."""
    config = policy_config()
    config.model = f"{runs}/align"
    config.calls = (2, 4)
    return config


def published_align(runs: str):
    """The alignment of a published model in the folder `runs`; files set sizes, rate and steps.

    Batch, learning rates, warm-up and the rank of LoRA are not from the paper.
    """
    config = base_config(model="llama", objective="alignment", sampler="x_prediction")
    config.data.generated = f"{runs}/own"
    config.model.length = 1024
    config.model.attention_softcap = 0.0
    config.model.logit_softcap = 0.0
    config.model.attention = "auto"
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.model.scan_blocks = True
    config.model.loss_tile = 128
    config.optim.warmup_steps = 10
    config.optim.ema_decay = 0.0
    config.train.batch = 32
    config.train.log_every = 10
    config.train.checkpoint_every = 100
    config.eval.every = 0
    config.eval.batches = 2
    config.eval.samples = 1
    config.eval.sample_steps = 64
    config.mesh.data = 1
    config.mesh.fsdp = -1
    return config


def published_policy(runs: str):
    """A policy for the aligned model in the folder `runs`, learnt on MBPP's training split.

    Answers of 256 tokens in at most 256 calls. The number of updates on a batch, the learning rate,
    lambda (config.completion) and the clip are not from the paper.
    """
    config = policy_config()
    config.model = f"{runs}/align"
    config.problems = "mbpp.jsonl"
    config.answer_length = 256
    config.calls = (256,)
    config.reward = "unit_tests"
    config.prompts = 374
    config.prompt_batch = 8
    config.group = 8
    config.epochs = 4
    config.train.steps = 6000
    config.train.checkpoint_every = 50
    # Each device holds the model whole: split, it would be gathered in each of the calls.
    config.mesh.data = -1
    config.mesh.fsdp = 1
    return config
