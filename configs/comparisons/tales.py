"""The headline on children's books: flow maps in 1 to 8 calls against few-step rivals.

python -m flm_jax.evaluate --config=configs/comparisons/tales.py \
    --config.prepare.path=FOLDER/tales.jsonl.gz --workdir=runs/headline

FLM, its map FMLM and that map after distribution matching, FMLM_dmd, together see 8,000 times 128
rows of 32 tokens. So do MDLM, Duo and AR, each alone; MDLM_sdtt and Duo_dcd with the bases that
they start from. An update of distribution matching counts the rows of all its three networks. All
are of the recipe of configs/tales: Muon, and posterior input and clean context for the flows.

Hardware: one GPU. Duration: all but FMLM_dmd were trained on an H200 in seven minutes, eight at a
time; their measuring was not finished (docs/results/tales.md, "Few-step rivals").
"""

from ml_collections import ConfigDict

from configs.comparisons import recipe
from configs.tales import recipe as books
from flm_jax.config import choose

SIZES = dict(length=32, dim=192, depth=3, batch=128)
ALL_STEPS, FLOW_STEPS, MAP_STEPS, UPDATES = 8000, 4000, 1000, 1000
TEMPERATURES = (0.8, 0.9)
FRONTIERS = {"FLM": "denoiser_temperature", "MDLM": "temperature", "Duo": "temperature"}


def model(steps: int):
    """The small FLM of the tales without what only flows have; other models differ from it."""
    config = recipe.model(SIZES, steps, 3e-3)
    config.data.packing = "stream"
    config.optim.name = "muon"
    config.optim.warmup_steps = 50
    config.eval.batches = 0
    return config


def flow(steps: int):
    """The small FLM of the tales: posterior input, and clean context in half of the rows."""
    config = model(steps)
    config.model.posterior_input = True
    config.objective.context = 0.5
    return config


def flow_map(steps: int):
    """Its map by the semigroup route."""
    config = flow(steps)
    config.model.two_time = True
    choose(config, objective="semigroup")
    config.optim.lr = 2e-3
    config.sampler.gamma = 0.5
    return config


def matched(updates: int):
    """That map after distribution matching."""
    config = flow(updates)
    books.match(config)
    config.optim.ema_decay = 0.99
    config.train.batch = 3 * SIZES["batch"]
    return config


def judge():
    """A larger AR model, which judges all others."""
    config = model(4000)
    books.judge(config)
    config.train.batch = 256
    return config


def comparison(title: str):
    """A comparison on the tales without models as yet."""
    config = recipe.comparison(title)
    config.prepare = ConfigDict(dict(source="jsonl", path="", valid_fraction=0.02))
    config.prepare.tokenizer = "sentencepiece"
    config.prepare.sentencepiece_model = "unigram"
    config.prepare.vocab_size = 4096
    config.words = True
    config.samples = 256
    config.batch_size = 128
    return config


def get_config(arg: str = ""):
    """`arg` is the seed of training, 0 by default."""
    masked, uniform = (model(FLOW_STEPS) for _ in range(2))
    mdlm, duo = (model(ALL_STEPS) for _ in range(2))
    for one in (masked, mdlm):
        choose(one, objective="masked_diffusion")
    dcd = recipe.distilled(model(ALL_STEPS - FLOW_STEPS), "discrete_consistency")
    for one in (uniform, duo):
        choose(one, objective="uniform_diffusion")
    for one in (uniform, duo, dcd):
        one.model.position_table = True
    sdtt = recipe.distilled(model(ALL_STEPS - FLOW_STEPS), "through_time")
    # The causal network has no time conditioning: a wider one has as many parameters.
    ar = model(ALL_STEPS)
    choose(ar, model="causal", objective="autoregressive")
    ar.model.dim = 216
    config = comparison("tales: text of models trained on as many tokens")
    config.judge = "judge"
    few, many = (1, 2, 4, 8), (1, 2, 4, 8, 16, 32)
    remasked = {name: way | {"steps": (16, 32)} for name, way in recipe.REMASKED.items()}
    greedy = {"greedy": {"steps": few, "tail": "greedy"}}
    for name, one, steps, teacher, start, ways in (
        ("judge", judge(), (), "", "", {}),
        ("FLM", flow(FLOW_STEPS), (4, 8, 32), "", "", {}),
        ("FMLM", flow_map(MAP_STEPS), few, "FLM", "", {}),
        ("FMLM_dmd", matched(UPDATES), few, "FLM", "FMLM", {}),
        ("MDLM", mdlm, many, "", "", remasked),
        ("MDLM_base", masked, (), "", "", {}),
        ("MDLM_sdtt", sdtt, few, "MDLM_base", "", {}),
        ("Duo", duo, many, "", "", {}),
        ("Duo_base", uniform, (), "", "", {}),
        ("Duo_dcd", dcd, few, "Duo_base", "", greedy),
        ("AR", ar, (SIZES["length"],), "", "", {}),
    ):
        one.seed = int(arg or 0)
        entry = {"config": one, "steps": steps, "teacher": teacher, "start": start, "ways": ways}
        config.models[name] = ConfigDict(entry)
        if name in FRONTIERS:
            config.models[name].frontier = ConfigDict({FRONTIERS[name]: TEMPERATURES})
    return config
