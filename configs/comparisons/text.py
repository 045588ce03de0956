"""FLM, FMLM, MDLM, Duo and AR on real text, judged by one larger AR model.

python -m flm_jax.evaluate --config=configs/comparisons/text.py --workdir=runs/text
python -m flm_jax.evaluate --config=configs/comparisons/text.py:tinyshakespeare \
    --config.prepare.path=FOLDER/tinyshakespeare.txt --workdir=runs/shakespeare
python -m flm_jax.evaluate --config=configs/comparisons/text.py:wikitext2 \
    --config.prepare.path=FOLDER/wikitext2 --workdir=runs/wikitext2

The first command reads the documentation of the running Python. MDLM, Duo and AR each take as many
rows as FLM and FMLM together; so do their distilled forms MDLM_sdtt and Duo_dcd with the bases that
they start from. ReMDM is the MDLM sampled otherwise. The judge is a larger AR model, so that AR is
not judged by itself. All models have Muon, FLM at 1e-2 and the others at 3e-3 (SDTT and DCD at
1e-3); FLM and FMLM have posterior input and clean context. docs/results/recipe.md compares these
choices with others.

Words after the corpus: `papers` for AdamW at 1e-3 and flows of plain states; names of the models to
train, all by default, as in --config=configs/comparisons/text.py:pydoc,papers,FLM,FMLM.

Hardware: two CPU cores. Duration and figures: docs/results/text.md. `tinyshakespeare` is
unmeasured.
"""

from ml_collections import ConfigDict

from configs.comparisons import recipe
from flm_jax.config import choose

# corpus -> how it is prepared; sentencepiece pieces of 1024 make words of 2 to 3 tokens.
CORPORA = {
    "pydoc": dict(source="pydoc", path="", split_documents="file"),
    "tinyshakespeare": dict(source="text", path="", split_documents="file"),
    "wikitext2": dict(source="text", path="", split_documents="line"),
}
SIZES = dict(length=32, dim=128, depth=4, batch=64)
# The temperature that changes each model's samples, and its values beside 1: quality and entropy at
# all of them are drawn as frontier.png.
FRONTIERS = {"FLM": "denoiser_temperature", "MDLM": "temperature", "Duo": "temperature"}
TEMPERATURES = (0.8, 0.9)
FLOW_STEPS, DISTIL_STEPS, JUDGE_STEPS = 1200, 800, 1500


def _model(steps: int, papers: bool):
    config = recipe.model(SIZES, steps, 1e-3 if papers else 3e-3)
    config.optim.name = "adamw" if papers else "muon"
    config.data.packing = "stream"
    config.optim.ema_decay = 0.995
    config.train.log_every = 100
    config.train.checkpoint_every = 500
    config.eval.batches = 8
    return config


def _flow(steps: int, papers: bool):
    config = _model(steps, papers)
    if not papers:
        config.model.posterior_input = True
        config.objective.context = 0.5
    return config


def _causal(steps: int, papers: bool, dim: int):
    config = _model(steps, papers)
    choose(config, model="causal", objective="autoregressive")
    config.model.dim = dim
    return config


def _diffusion(steps: int, papers: bool, objective: str):
    config = _model(steps, papers)
    choose(config, objective=objective)
    config.model.position_table = objective == "uniform_diffusion"
    return config


def get_config(arg: str = ""):
    """`arg` is the corpus (pydoc, tinyshakespeare, wikitext2), then "papers" or names of models."""
    corpus, *words = (arg or "pydoc").split(",")
    papers = "papers" in words
    names = [word for word in words if word != "papers"]
    whole = FLOW_STEPS + DISTIL_STEPS
    flm, fmlm = _flow(FLOW_STEPS, papers), _flow(DISTIL_STEPS, papers)
    flm.optim.lr = 1e-3 if papers else 1e-2
    fmlm.model.two_time = True
    choose(fmlm, objective="semigroup")
    sdtt = recipe.distilled(_model(DISTIL_STEPS, papers), "through_time")
    dcd = recipe.distilled(_model(DISTIL_STEPS, papers), "discrete_consistency")
    dcd.model.position_table = True
    config = recipe.comparison(f"{corpus}: text of models trained on as many tokens")
    config.prepare = ConfigDict(CORPORA[corpus])
    config.prepare.tokenizer = "sentencepiece"
    config.prepare.vocab_size = 1024
    config.prepare.valid_fraction = 0.1
    config.judge = "judge"
    config.samples = 512
    config.batch_size = 128
    few, many = (1, 2, 4, 8), (1, 2, 4, 8, 16, 32, 64)
    remasked = {name: way | {"steps": (32, 64)} for name, way in recipe.REMASKED.items()}
    greedy = {"greedy": {"steps": few, "tail": "greedy"}}
    for name, model, steps, teacher, ways in (
        ("judge", _causal(JUDGE_STEPS, papers, 192), (), "", {}),
        ("FLM", flm, (4, 8, 64), "", {}),
        ("FMLM", fmlm, few, "FLM", {}),
        ("MDLM", _diffusion(whole, papers, "masked_diffusion"), many, "", remasked),
        ("MDLM_base", _diffusion(FLOW_STEPS, papers, "masked_diffusion"), (), "", {}),
        ("MDLM_sdtt", sdtt, few, "MDLM_base", {}),
        ("Duo", _diffusion(whole, papers, "uniform_diffusion"), many, "", {}),
        ("Duo_base", _diffusion(FLOW_STEPS, papers, "uniform_diffusion"), (), "", {}),
        ("Duo_dcd", dcd, few, "Duo_base", greedy),
        # The causal network has no time conditioning: a wider one has as many parameters.
        ("AR", _causal(whole, papers, 152), (32,), "", {}),
    ):
        config.models[name] = ConfigDict(
            {"config": model, "steps": steps, "teacher": teacher, "ways": ways}
        )
        if name in FRONTIERS:
            config.models[name].frontier = ConfigDict({FRONTIERS[name]: TEMPERATURES})
    return recipe.only(config, names)
