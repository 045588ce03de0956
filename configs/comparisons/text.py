"""FLM, FMLM, MDLM, Duo and AR on real text, judged by one larger AR model.

python -m flm_jax.evaluate --config=configs/comparisons/text.py --workdir=runs/text
python -m flm_jax.evaluate --config=configs/comparisons/text.py:tinyshakespeare \
    --config.prepare.path=FOLDER/tinyshakespeare.txt --workdir=runs/shakespeare
python -m flm_jax.evaluate --config=configs/comparisons/text.py:wikitext2 \
    --config.prepare.path=FOLDER/wikitext2 --workdir=runs/wikitext2

The first command reads the documentation of the running Python. MDLM, Duo and AR each take as many
rows as FLM and FMLM together; so do their distilled forms MDLM_sdtt and Duo_dcd with the bases that
they start from. ReMDM is the MDLM sampled otherwise. The judge is a larger AR model, so that AR is
not judged by itself.

Hardware: one CPU core. Duration: an hour and a half on a busy core at half of the steps. Expected:
in one network call the perplexity under the judge is 2,066 for FMLM and 6,568 for MDLM; from two
calls on MDLM leads (docs/results/text.md, "Text"; with Duo, the distilled forms and ReMDM, "With
the few-step baselines and frontiers"). `tinyshakespeare` and `wikitext2` are unmeasured.
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


def _model(steps: int):
    config = recipe.model(SIZES, steps, 1e-3)
    config.data.packing = "stream"
    config.optim.ema_decay = 0.995
    config.train.log_every = 100
    config.train.checkpoint_every = 500
    config.eval.batches = 8
    return config


def _causal(steps: int, dim: int):
    config = _model(steps)
    choose(config, model="causal", objective="autoregressive")
    config.model.dim = dim
    return config


def get_config(arg: str = ""):
    """`arg` names the corpus: pydoc (default), tinyshakespeare, wikitext2."""
    corpus = arg or "pydoc"
    flm = _model(FLOW_STEPS)
    fmlm = _model(DISTIL_STEPS)
    fmlm.model.two_time = True
    choose(fmlm, objective="semigroup")
    mdlm = _model(FLOW_STEPS + DISTIL_STEPS)
    choose(mdlm, objective="masked_diffusion")
    sdtt = recipe.distilled(_model(DISTIL_STEPS), "through_time")
    masked = _model(FLOW_STEPS)
    choose(masked, objective="masked_diffusion")
    duo, uniform = (_model(steps) for steps in (FLOW_STEPS + DISTIL_STEPS, FLOW_STEPS))
    dcd = recipe.distilled(_model(DISTIL_STEPS), "discrete_consistency")
    for model in (duo, uniform):
        choose(model, objective="uniform_diffusion")
    for model in (duo, uniform, dcd):
        model.model.position_table = True
    # The causal network has no time conditioning: a wider one has as many parameters.
    ar = _causal(FLOW_STEPS + DISTIL_STEPS, 152)
    judge = _causal(JUDGE_STEPS, 192)
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
        ("judge", judge, (), "", {}),
        ("FLM", flm, (4, 8, 64), "", {}),
        ("FMLM", fmlm, few, "FLM", {}),
        ("MDLM", mdlm, many, "", remasked),
        ("MDLM_base", masked, (), "", {}),
        ("MDLM_sdtt", sdtt, few, "MDLM_base", {}),
        ("Duo", duo, many, "", {}),
        ("Duo_base", uniform, (), "", {}),
        ("Duo_dcd", dcd, few, "Duo_base", greedy),
        ("AR", ar, (32,), "", {}),
    ):
        config.models[name] = ConfigDict(
            {"config": model, "steps": steps, "teacher": teacher, "ways": ways}
        )
        if name in FRONTIERS:
            config.models[name].frontier = ConfigDict({FRONTIERS[name]: TEMPERATURES})
    return config
