"""FMLM in 1 to 8 calls, FLM, MDLM in 1 to 64, and AR on real text, judged by one AR model.

python -m flm_jax.evaluate --config=configs/compare_text.py --workdir=runs/text
python -m flm_jax.evaluate --config=configs/compare_text.py:tinyshakespeare \
    --config.prepare.path=FOLDER/tinyshakespeare.txt --workdir=runs/shakespeare
python -m flm_jax.evaluate --config=configs/compare_text.py:wikitext2 \
    --config.prepare.path=FOLDER/wikitext2 --workdir=runs/wikitext2

The first reads the documentation of the running Python. Two hours on one busy CPU core. FLM and
FMLM together take as many rows as MDLM, and as AR. The judge is none of these: it is larger, so
that AR is not judged by itself.
"""

from ml_collections import ConfigDict

from flm_jax.defaults import base_config

# corpus -> how it is prepared; sentencepiece pieces of 1024 make words of 2 to 3 tokens.
CORPORA = {
    "pydoc": dict(source="pydoc", path="", split_documents="file"),
    "tinyshakespeare": dict(source="text", path="", split_documents="file"),
    "wikitext2": dict(source="text", path="", split_documents="line"),
}
FLOW_STEPS, DISTIL_STEPS, JUDGE_STEPS = 1200, 800, 1500


def _model(steps: int):
    config = base_config()
    config.data.packing = "stream"
    config.model.length = 32
    config.model.dim = 128
    config.model.depth = 4
    config.model.heads = 4
    config.optim.lr = 1e-3
    config.optim.schedule = "cosine"
    config.optim.ema_decay = 0.995
    config.train.steps = steps
    config.train.batch = 64
    config.train.log_every = 100
    config.train.checkpoint_every = 500
    config.eval.every = 0
    config.eval.batches = 8
    config.eval.sample_steps = 8
    return config


def _causal(steps: int, dim: int):
    config = _model(steps)
    config.model.name = "causal"
    config.objective.name = "autoregressive"
    config.model.dim = dim
    return config


def get_config(arg: str = ""):
    """`arg` names the corpus: pydoc (default), tinyshakespeare, wikitext2."""
    flm = _model(FLOW_STEPS)
    fmlm = _model(DISTIL_STEPS)
    fmlm.model.two_time = True
    fmlm.objective.name = "semigroup"
    mdlm = _model(FLOW_STEPS + DISTIL_STEPS)
    mdlm.objective.name = "masked"
    # The causal network has no time conditioning: a wider one has as many parameters.
    ar = _causal(FLOW_STEPS + DISTIL_STEPS, 152)
    judge = _causal(JUDGE_STEPS, 192)
    config = ConfigDict()
    config.title = f"{arg or 'pydoc'}: text of models trained on as many tokens"
    config.prepare = ConfigDict(CORPORA[arg or "pydoc"])
    config.prepare.tokenizer = "sentencepiece"
    config.prepare.vocab_size = 1024
    config.prepare.valid_fraction = 0.1
    config.judge = "judge"
    config.samples = 512
    config.batch_size = 128
    config.seed = 0
    config.models = ConfigDict()
    for name, model, steps, teacher in (
        ("judge", judge, (), ""),
        ("FLM", flm, (4, 8, 64), ""),
        ("FMLM", fmlm, (1, 2, 4, 8), "FLM"),
        ("MDLM", mdlm, (1, 2, 4, 8, 16, 32, 64), ""),
        ("AR", ar, (32,), ""),
    ):
        config.models[name] = ConfigDict({"config": model, "steps": steps, "teacher": teacher})
    return config
