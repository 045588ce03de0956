"""An embedding flow on OpenWebText by the recipe of LangFlow (arXiv 2604.11748): 1024 tokens.

python -m flm_jax.train --config=configs/owt/langflow.py --workdir=runs/owt/langflow

The data are the same as in configs/owt/flm.py. The model follows the weights that its authors
published: normalised embeddings of length sqrt(768), the variance-preserving path, a Gumbel
distribution of gamma, gamma as an input of the network, the posterior of each state added to the
logits, self-conditioning, no soft caps. Their training code is not published: batch, learning rate
and steps are the same as in configs/owt/flm.py. Their network adds a linear map of state and
estimate together, here the map takes the estimate alone. A tenth of the times is uniform here, so
that the distribution can be fitted.

Hardware: accelerators. Duration and metrics are unmeasured here. The paper reports a perplexity
of 24.6.
"""

from configs.owt.recipe import recipe
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` is the folder of prepared data, data/owt by default."""
    config = recipe(arg)
    choose(config, flow="variance_preserving")
    config.model.normalised_table = True
    config.model.posterior_skip = True
    config.model.self_conditioning = True
    config.model.attention_softcap = 0.0
    config.model.logit_softcap = 0.0
    return config
