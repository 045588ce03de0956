"""The data sets of the published tables, with the settings that reproduce their tokens.

MDLM (arXiv 2406.07524), Duo (2506.10892) and FLM (2602.16813) prepare text in the same way:
training on LM1B or OpenWebText, perplexity without training on the others. Texts are read
unchanged, including empty ones; tokenizer and packing belong to the model, see configs/lm1b and
configs/owt.

Commits are pinned if the parquet files are the data set's own, or if the commit of their conversion
is known; the others are read from the hub's conversion, which the hub does not repeat, and the
manifest keeps the commit that was read.
"""

import dataclasses
from typing import Any

from flm_jax.core.errors import one_of
from flm_jax.data.corpus.hub import CONVERTED
from flm_jax.data.corpus.sources import SourceConfig

_OPENWEBTEXT_HELD_OUT = 100_000  # documents, the last ones
BERT = "hf:bert-base-uncased@86b5e0934494bd15c9632b12f734a8a67f723594"
GPT2 = "hf:gpt2@607a30d783dfa663caf39e06633721c8d4cfcd7e"

_VALIDATION: dict[str, Any] = {"valid_split": "validation", "valid_only": True}


def _hub(name: str, config: str, revision: str, **settings: Any) -> SourceConfig:
    path = f"{name}{f':{config}' if config else ''}@{revision}"
    return SourceConfig("hf", path, verbatim=True, **settings)


def _wikitext(size: str) -> SourceConfig:
    commit = "b08601e04326c79dfdd32d625aee71d232d685c3"
    name = f"wikitext-{size}-raw-v1"
    return _hub("Salesforce/wikitext", name, commit, detokenize="wikitext", **_VALIDATION)


def _papers(kind: str) -> SourceConfig:
    how = {"text_key": "article", "detokenize": "scientific_papers"}
    return _hub("armanc/scientific_papers", kind, CONVERTED, **how, **_VALIDATION)


PUBLISHED: dict[str, SourceConfig] = {
    "lm1b": _hub(
        "billion-word-benchmark/lm1b",
        "plain_text",
        "8d52bfd3cc2819fc1166dbb8144c328e2690de3e",
        detokenize="lm1b",
        valid_split="test",
    ),
    "openwebtext": _hub(
        "Skylion007/openwebtext",
        "plain_text",
        "79d93d786212f7344586290adb811d4ae6a1762c",
        valid_last=_OPENWEBTEXT_HELD_OUT,
    ),
    "text8": SourceConfig("text8", verbatim=True),
    "ptb": _hub(
        "ptb-text-only/ptb_text_only",
        "penn_treebank",
        CONVERTED,
        text_key="sentence",
        detokenize="ptb",
        **_VALIDATION,
    ),
    "wikitext2": _wikitext("2"),
    "wikitext103": _wikitext("103"),
    "lambada": _hub(
        "EleutherAI/lambada_openai",
        "default",
        CONVERTED,
        detokenize="lambada",
        valid_split="test",
        valid_only=True,
    ),
    "ag_news": _hub(
        "fancyzhx/ag_news",
        "",
        "eb185aade064a813bc0b7f42de02595523103ca4",
        valid_split="test",
        valid_only=True,
    ),
    "pubmed": _papers("pubmed"),
    "arxiv": _papers("arxiv"),
}
_TOKENIZERS = {"lm1b": BERT, "text8": "text8"}


def published_source(name: str, path: str) -> SourceConfig:
    """Returns the settings with which a published data set is read.

    Args:
      name: one of `PUBLISHED`.
      path: folder of the same layout, or another name on the hub; "" for the published location.
    """
    source = PUBLISHED[one_of("published", name, PUBLISHED)]
    return dataclasses.replace(source, path=path or source.path)


def published_tokenizer(name: str) -> str:
    """Name of the tokenizer with which the published tables train or evaluate on a data set."""
    return _TOKENIZERS.get(one_of("published", name, PUBLISHED), GPT2)
