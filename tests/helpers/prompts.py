"""An untrained model, of bytes or of another tokenizer, that is prompted, and its answers."""

import jax

from flm_jax.build.flow import make_flow
from flm_jax.build.load import Model
from flm_jax.build.model import make_network
from flm_jax.config.check import check
from flm_jax.config.schema import base_config, choose
from flm_jax.data.tokenizers.builtin import ByteTokenizer
from flm_jax.inference.answers import answer_batches

BYTES = ByteTokenizer()
ROW_LENGTH = 160


def byte_model(chat=False, name="llama", objective="masked_diffusion", tokenizer=BYTES, **data):
    config = base_config()
    choose(config, model=name, objective=objective)
    config.model.length, config.model.dim, config.model.depth, config.model.heads = (
        ROW_LENGTH,
        16,
        1,
        2,
    )
    config.model.attention_softcap = config.model.logit_softcap = 0.0
    config.model.vocab_size = tokenizer.vocab_size
    config.data.chat = (("a.jsonl", 1.0),) if chat else ()
    config.data.update(data)
    config = check(config)
    net = make_network(config)
    flow = make_flow(config, net.vocab_size)
    return Model(config, net, net.init(jax.random.key(0)), flow, tokenizer, 0)


def answers(model, prompts, how):
    for batch in answer_batches(model, prompts, how):
        yield from batch
