"""Chat templates of Hugging Face tokenizers, read from their files and rendered by Jinja.

Jinja comes with the extra `hf`. A template is a program of the tokenizer's publisher, so it runs in
Jinja's sandbox.
"""

import datetime
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flm_jax.core.errors import UserError, require
from flm_jax.core.extras import import_extra
from flm_jax.core.files import to_json
from flm_jax.core.reading import loads

TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE, MAP_FILE = "tokenizer_config.json", "special_tokens_map.json"
GENERATION_FILE = "generation_config.json"
CHAT_FILES = (CONFIG_FILE, MAP_FILE, TEMPLATE_FILE, GENERATION_FILE)
ROLES = ("user", "assistant")
_MORE = ("additional_special_tokens", "extra_special_tokens")


class ChatSettings(NamedTuple):
    """Chat settings in a tokenizer's files.

    Attributes:
      template: Jinja source; "" for none.
      names: names of the special tokens in a template: {"bos_token": "<s>"}.
      more: texts of further special tokens that tokenizer.json does not have.
      end_ids: tokens that end an answer, from generation_config.json.
    """

    template: str = ""
    names: Mapping[str, str] = {}
    more: tuple[str, ...] = ()
    end_ids: tuple[int, ...] = ()


NO_CHAT = ChatSettings()


def read_chat_settings(found: Mapping[str, bytes]) -> ChatSettings:
    """Reads settings from a tokenizer's files (name -> content); missing files are ignored.

    Raises:
      UserError: several templates of which none is the default, or a file that is no JSON object.
    """
    declared = {**_read(found, CONFIG_FILE), **_read(found, MAP_FILE)}
    texts = {key: _text(value) for key, value in declared.items() if key.endswith("_token")}
    more = [_text(one) for key in _MORE for one in _items(declared.get(key))]
    added = declared.get("added_tokens_decoder") or {}
    more += [one["content"] for one in added.values() if one.get("special")]
    ends = _read(found, GENERATION_FILE).get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    return ChatSettings(
        _template(found, declared),
        {key: text for key, text in texts.items() if text},
        tuple(dict.fromkeys(filter(None, more))),
        tuple(one for one in ends if type(one) is int),
    )


def _read(found: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        value = loads(found.get(name, b"{}"))
    except ValueError as error:
        raise UserError(f"the tokenizer's {name} is no JSON ({error}); restore it.") from error
    require(
        isinstance(value, dict),
        f"the tokenizer's {name} holds a {type(value).__name__}; expected an object, restore it.",
    )
    return value


def _items(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else list(value or ())


def _text(value: Any) -> str:
    """Text of a token, which is a string or the "content" of an object."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else ""


def _template(found: Mapping[str, bytes], declared: Mapping[str, Any]) -> str:
    """Template in its own file, else in tokenizer_config.json, as one or in a list."""
    if TEMPLATE_FILE in found:
        return found[TEMPLATE_FILE].decode("utf8")
    value = declared.get("chat_template") or ""
    if isinstance(value, str):
        return value
    named = {one.get("name"): one.get("template") for one in value}
    template = named.get("default", next(iter(named.values())) if len(named) == 1 else None)
    if not isinstance(template, str):
        raise UserError(
            f"{CONFIG_FILE} holds the chat templates {', '.join(map(str, named))}; expected one "
            "that is named 'default': name the one to use so."
        )
    return template


def rendered(settings: ChatSettings, turns: Sequence[str], *, answer: bool) -> str:
    """Renders the text of an exchange by the template.

    Args:
      turns: turns of user and assistant, alternating, the user's first.
      answer: whether an answer follows: the text then ends where the answer begins.

    Raises:
      UserError: Jinja is missing, or a template does not accept these turns.
    """
    template = _compiled(settings.template)
    messages = [{"role": ROLES[i % 2], "content": turn} for i, turn in enumerate(turns)]
    given = {"messages": messages, "add_generation_prompt": answer}
    try:
        return template.render(tools=None, documents=None, **settings.names, **given)
    except Exception as error:  # a template may fail as any program does
        raise UserError(
            f"the tokenizer's chat template does not take a {' and an '.join(ROLES[: len(turns)])} "
            f"turn ({_first_line(error)}); mend chat_template in its {CONFIG_FILE}, or ask without "
            "--chat."
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> Any:
    environment = jinja()
    try:
        return environment.from_string(source)
    except Exception as error:
        raise UserError(
            f"the tokenizer's chat template is no Jinja ({_first_line(error)}); mend chat_template "
            f"in its {CONFIG_FILE}, or ask without --chat."
        ) from error


@functools.cache
def jinja() -> Any:
    """Returns Jinja's sandbox with the functions that chat templates call.

    Raises:
      UserError: Jinja is not installed.
    """
    parts = ("jinja2.sandbox", "jinja2.ext")
    sandbox, ext = (import_extra(part, "hf", "this tokenizer's chat template") for part in parts)

    class Generation(ext.Extension):
        """{% generation %} ... {% endgeneration %}, which marks an answer: here its text alone."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise ValueError(message)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    # Unlike Jinja's own, it writes no character as an entity of HTML.
    environment.filters["tojson"] = lambda value, indent=None: to_json(
        value, ensure_ascii=False, indent=indent
    )
    return environment
