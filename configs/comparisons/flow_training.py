"""What helps a small flow of children's books, and a small map of it: one change at a time.

python -m flm_jax.evaluate --config=configs/comparisons/flow_training.py:0 \
    --config.prepare.path=FOLDER/tales.jsonl.gz --config.judge=JUDGE --workdir=runs/flow_training

JUDGE is an autoregressive model of these books, such as that of configs/tales/ar.py. `base` is the
FLM of configs/comparisons/tales.py at the size that two cores train in minutes: Muon at 3e-3,
posterior input, the decoding-error clock, clean context in half of the rows. Each other flow has
one thing changed and sees as many tokens, but `states_longer`, which trains for as many seconds.
The maps are distilled from `base`. Other vocabularies are runs of their own:

python -m flm_jax.evaluate --config=configs/comparisons/flow_training.py:0,base \
    --config.prepare.path=FOLDER/tales.jsonl.gz --config.prepare.vocab_size=4096 \
    --config.judge=JUDGE --workdir=runs/flow_training_4096

Hardware: two CPU cores, on which a step of `base` takes .21 s.
"""

from ml_collections import ConfigDict

from configs.comparisons import recipe, tales
from flm_jax.config import choose

DIM, ROWS, STEPS = 128, 32, 600


def _embedding(config):
    choose(config, flow="variance_preserving")
    config.model.normalised_table = True


def _langflow(config):
    _embedding(config)
    config.model.posterior_input = False
    config.model.posterior_skip = True
    config.model.self_conditioning = True


def _longer(config):
    config.model.length = 64
    config.train.batch //= 2


def _wider(config):
    config.model.dim = 192


# name -> what differs from `base`: settings, or a function that changes the configuration.
FLOWS = {
    "base": {},
    "muon_1e-3": {"optim.lr": 1e-3},
    "muon_1e-2": {"optim.lr": 1e-2},
    "adamw_1e-3": {"optim.name": "adamw", "optim.lr": 1e-3},
    "adamw_3e-3": {"optim.name": "adamw", "optim.lr": 3e-3},
    "adamw_1e-2": {"optim.name": "adamw", "optim.lr": 1e-2},
    "states": {"model.posterior_input": False},
    "states_adamw": {"model.posterior_input": False, "optim.name": "adamw"},
    "states_longer": {"model.posterior_input": False, "train.steps": 8 * STEPS // 5},
    "no_context": {"objective.context": 0.0},
    "clock_embedded": {"flow.clock": "embedded"},
    "clock_learnt": {"flow.clock": "learnt"},
    "embedding": _embedding,
    "langflow": _langflow,
    "self_conditioned": {"model.self_conditioning": True},
    "length_64": _longer,
    "dim_192": _wider,
}
# name -> what differs from the semigroup route, or from distribution matching, whose update takes
# three batches.
MAP_STEPS = 200
ROUTES = {
    "map_semigroup": {},
    "map_boundary": {"objective.boundary": 0.25},
    "map_endpoint": {"objective.name": "endpoint"},
    "map_lagrangian": {"objective.name": "lagrangian"},
    "map_eulerian": {"objective.name": "eulerian"},
}
MATCHED = {
    "matched_from_map": {},
    "matched_from_flow": {},
    "matched_at_1": {"objective.teacher_temperature": 1.0},
    "matched_adamw": {"optim.name": "adamw", "optim.lr": 3e-4, "objective.auxiliary_lr": 3e-4},
}


def _changed(config, changes):
    matched = config.objective.name == "distribution_matching"
    config.model.dim = DIM
    config.train.batch = (3 if matched else 1) * ROWS
    config.optim.ema_decay = 0.99
    if callable(changes):
        changes(config)
        return config
    if "objective.name" in changes:
        choose(config, objective=changes["objective.name"])
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config


def get_config(arg: str = ""):
    """`arg` is the seed of training and, after it, names of models, all by default: 1,base."""
    seed, *names = (arg or "0").split(",")
    config = tales.comparison("tales: what helps a small flow, and a small map of it")
    config.judge = ""
    config.prepare.vocab_size = 2048
    config.samples = 128
    found = {}
    for name, changes in FLOWS.items():
        found[name] = (_changed(tales.flow(STEPS), changes), (8, 32), "", "")
    for name, changes in ROUTES.items():
        found[name] = (_changed(tales.flow_map(MAP_STEPS), changes), (1, 4), "base", "")
    for name, changes in MATCHED.items():
        start = "" if name == "matched_from_flow" else "map_semigroup"
        found[name] = (_changed(tales.matched(MAP_STEPS), changes), (1, 4), "base", start)
    for name, (model, steps, teacher, start) in found.items():
        model.seed = int(seed)
        entry = {"config": model, "steps": steps, "teacher": teacher, "start": start, "ways": {}}
        config.models[name] = ConfigDict(entry)
        if name in FLOWS:
            config.models[name].frontier = ConfigDict({"denoiser_temperature": (0.8,)})
    return recipe.only(config, names)
