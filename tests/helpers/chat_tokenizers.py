"""Small tokenizers with the special tokens and chat templates of published models, as folders."""

import json
from pydoc_data.topics import topics

ENGLISH = "\n".join(topics[name] for name in ("assert", "for", "if", "import", "with"))
LLADA_SPECIALS = (
    "<|startoftext|> <|endoftext|> [CLS] [gMASK] <|reserved_token_0|> <|mdm_mask|> <role> </role> "
    "<|start_header_id|> <|end_header_id|> <|eot_id|>"
).split()
LLADA_TEMPLATE = """\
{% for turn in messages %}
{% set head = '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\n\n' %}
{{ (bos_token if loop.first else '') + head + turn['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}"""
LLADA2_SPECIALS = (
    "<|startoftext|> <|endoftext|> [CLS] [gMASK] <|mask|> <role> </role> <|role_end|>"
).split()
LLADA2_TEMPLATE = """\
{%- set role_of = {'user': 'HUMAN', 'assistant': 'ASSISTANT', 'system': 'SYSTEM'} %}
{%- if messages[0].role != 'system' %}
{{- '<role>SYSTEM</role>detailed thinking off<|role_end|>' }}
{%- endif %}
{%- for turn in messages %}
{%- if turn.role not in role_of %}{{ raise_exception('no role ' + turn.role) }}{% endif %}
{{- '<role>' + role_of[turn.role] + '</role>' + turn.content + '<|role_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<role>ASSISTANT</role>' }}
{%- endif %}"""


def save(folder, backend, **files):
    """tokenizer.json and the other files, name without its ending -> object."""
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def byte_level(specials, plain=(), vocab_size=400):
    """A byte-level BPE; `plain` are added tokens that are not marked special."""
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - len(specials) - len(plain),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([ENGLISH], trainer)
    backend.add_special_tokens(list(specials))
    added = [tokenizers.AddedToken(text, special=False, normalized=False) for text in plain]
    backend.add_tokens(added)
    return backend


def llada(folder, template=LLADA_TEMPLATE):
    """LLaDA-8B-Instruct's: its end of turn stands in the template alone."""
    declared = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": {"content": "<|endoftext|>", "special": True},
        "add_bos_token": False,
        "chat_template": template,
    }
    return save(folder, byte_level(LLADA_SPECIALS), tokenizer_config=declared)


def llada2(folder, plain=("<think>", "</think>")):
    """LLaDA2.0-mini's: its ends are those of generation_config.json."""
    backend = byte_level(LLADA2_SPECIALS, plain)
    ends = [backend.token_to_id(text) for text in ("<|endoftext|>", "<|role_end|>")]
    declared = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
        "chat_template": LLADA2_TEMPLATE,
    }
    return save(
        folder, backend, tokenizer_config=declared, generation_config={"eos_token_id": ends}
    )


def metaspace(folder, scheme="first", **files):
    """Llama's: a space before a text, which decoding takes away."""
    import tokenizers

    pieces = [("<unk>", 0.0), ("\u2581", -2.0), ("\u2581a", -2.5)]
    pieces += [(c, -3.0) for c in "abcxyz(){}<|>_[]/INST\n"]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0))
    shape = {"prepend_scheme": scheme, "split": False}
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(**shape)
    backend.decoder = tokenizers.decoders.Metaspace(**shape)
    backend.add_special_tokens(["<s>", "</s>", "[INST]", "[/INST]"])
    return save(folder, backend, **files)


def word_pieces(folder, **files):
    """BERT's: a word in pieces, which decoding joins."""
    import tokenizers

    words = "[PAD] [UNK] [CLS] [SEP] [MASK] un the cat able ##able ##s ##x ##y . x".split()
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece()
    backend.add_special_tokens(words[:5])
    return save(folder, backend, **files)
