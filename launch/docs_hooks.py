"""What the site of docs/ does beyond Markdown: formulas as MathML, links out of docs as text.

MathML needs no script and no network; browsers draw it.
"""

import html
import re
from pathlib import Path

from latex2mathml.converter import convert

# Pages that have every word: a search shows the others first.
_LISTS = ("reference/configuration.md", "reference/errors.md", "reference/commands.md")
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)[^)\s]*\)")
# The converter writes names of functions as identifiers, without space to either side.
_BEFORE = re.compile(r"(?<=[\w)}])\s*(?=\\(?:log|exp|max|min|sin|cos|tanh)\b)")
_AFTER = re.compile(r"(?<=\\)(log|exp|max|min|sin|cos|tanh)\s+(?=[A-Za-z\\])")
_FORMULA = re.compile(r'<(div|span) class="arithmatex">\\([\[(])(.*?)\\[\])]</\1>', re.DOTALL)


def on_page_markdown(markdown, page, config, **_):
    """A link to a file of the repository that is no page leads nowhere here: its text stays."""
    if page.file.src_uri in _LISTS:
        page.meta["search"] = {"boost": 0.3}
    docs = Path(config.docs_dir).resolve()
    here = (docs / page.file.src_uri).parent

    def shown(found):
        inside = (here / found[2]).resolve().is_relative_to(docs)
        return found[0] if inside else found[1]

    return _LINK.sub(shown, markdown)


def on_page_content(content, **_):
    """Formulas that arithmatex found, as MathML."""
    return _FORMULA.sub(_mathml, content)


def _mathml(found):
    display = "block" if found[2] == "[" else "inline"
    formula = _BEFORE.sub(r"\\,", html.unescape(found[3]).strip())
    return convert(_AFTER.sub(r"\1\\,", formula), display=display)
