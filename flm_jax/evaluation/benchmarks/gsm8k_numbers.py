"""Rules that extract the number of a GSM8K answer, and compare two numbers.

- number: the number after the last "###" or "####" that a number follows, else the last number of
  the answer; compared by value. This is the library's own rule.
- strict, flexible: the rules of lm-evaluation-harness 0.4, the first number after "#### " and the
  last one anywhere, compared as texts. "### " counts as "#### ", since models here are trained on
  it.
- reference: the rules in the code of masked language flows (arXiv 2606.27617): the last number, or
  the first after the last marker, made canonical and compared as texts.
"""

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction

_LONGEST = 100  # characters of a number; longer ones are none

_SIGNS = str.maketrans(dict.fromkeys("\u2212\u2013\ufe63\uff0d", "-"))
_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:(?<![0-9])(?<![0-9]\.){_WHOLE}(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+)"
_POWER = r"(?:[eE][-+]?[0-9]{1,2}(?![0-9]))?"
# A minus behind a word, a number or a bracket joins or subtracts.
_SIGNED = rf"(?:(?<![\w)\]}}%])[-+])?{_DECIMAL}{_POWER}"
_NUMBER = re.compile(rf"(?P<top>{_SIGNED})(?: {{0,2}}/ {{0,2}}(?P<bottom>{_DECIMAL}))?")
_MARKER = re.compile(r"#{3,}([^\n#]*)")  # and what stands behind it on its line
_BEGINS = re.compile(rf"[^\w]{{0,20}}?{_NUMBER.pattern}")
_WRITTEN = (  # other ways to write what _NUMBER reads
    (re.compile(r"<<[^<>\n]*>>"), ""),  # notes of the calculator
    (re.compile(r"\\!"), ""),
    (re.compile(r"\{,\}|\\,"), ","),
    (re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}"), r"\1/\2"),
    (re.compile(r"\\?[$\u00a3\u20ac\u00a5] ?"), ""),
    (re.compile(r"\\[A-Za-z]+"), " "),
)

_HARNESS_STRICT = re.compile(r"#{3,4} (-?[0-9.,]+)")
_HARNESS_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")

_DIGITS = r"\d[\d,]*"
_REFERENCE = re.compile(rf"[-+]?(?:{_DIGITS}(?:\.\d*)?|\.\d+)(?:\s*/\s*[-+]?{_DIGITS})?")
_REFERENCE_LINE = re.compile(r"#{3,4}\s*([^\n\r]*)")
_WRAPPERS = " \t\r\n$.,:;*(){}[]"


def number(answer: str) -> Fraction | None:
    """Value of the number after the last marker with a number, else of the last number."""
    text = _rewritten(answer)
    found = _marked(text) or [*_NUMBER.finditer(text)]
    return _value(found[-1]) if found else None


def marked_number(answer: str) -> Fraction | None:
    """Value of the number after the last marker with a number; None without one."""
    found = _marked(_rewritten(answer))
    return _value(found[-1]) if found else None


def _marked(text: str) -> list[re.Match[str]]:
    """Numbers with which lines after markers begin.

    For a written-out sum it is the result: in 20-5=15 the number after the equals sign.
    """
    found = []
    for line in _MARKER.findall(text):
        result = line.rpartition("=")[2]
        begins = _BEGINS.match(result)
        if not begins or re.search("[0-9]", result[begins.end() :]):
            begins = _BEGINS.match(line)
        found += [begins] if begins else []
    return found


def _rewritten(answer: str) -> str:
    text = answer.translate(_SIGNS)
    for pattern, plain in _WRITTEN:
        text = pattern.sub(plain, text)
    return text


def _value(found: re.Match[str]) -> Fraction | None:
    parts = [part.replace(",", "") for part in (found["top"], found["bottom"] or "1")]
    if max(map(len, parts)) > _LONGEST:
        return None
    top, bottom = map(Fraction, parts)
    return top / bottom if bottom else None


def strict(answer: str) -> str | None:
    """Number found by the harness's strict rule, as text; None without one."""
    found = _HARNESS_STRICT.search(answer)
    return found[1] if found else None


def flexible(answer: str) -> str | None:
    """Number found by the harness's flexible rule, as text; None without one."""
    found = _HARNESS_FLEXIBLE.findall(answer)
    return found[-1] if found else None


def harness_text(text: str) -> str:
    """Text of a number or of a reference answer that the harness compares.

    It drops commas and dollar signs, the text before the result, and a final full stop.
    """
    return re.split(r"#{3,4} ", re.sub(r"[,$]", "", text))[-1].removesuffix(".")


def canonical(text: str) -> str | None:
    """Canonical text of the first number of `text`, as in the reference.

    Decimals have no redundant zeros, fractions of integers are in lowest terms; None if there is no
    number, or an invalid fraction. A leading dot is lost: .5 is 5.
    """
    found = _REFERENCE.search(text.strip(_WRAPPERS))
    if not found:
        return None
    top, slash, bottom = found[0].replace(",", "").partition("/")
    try:
        if slash:
            return str(Fraction(int(top), int(bottom)))
        plain = format(Decimal(top), "f")
    except (ValueError, ZeroDivisionError, InvalidOperation):
        return None
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return "0" if plain in ("-0", "") else plain


def reference_strict(answer: str) -> str | None:
    """Number on the line after the last marker by the reference's rule; None without one."""
    found = _REFERENCE_LINE.findall(answer)
    return canonical(found[-1]) if found else None


def reference_flexible(answer: str) -> str | None:
    """Last number of the answer by the reference's rule, which its authors report."""
    found = _REFERENCE.findall(answer)
    return canonical(found[-1]) if found else None


def reference_gold(answer: str) -> str | None:
    """Number of a correct answer by the reference's rule: after the marker, or else the last."""
    found = reference_strict(answer)
    return reference_flexible(answer) if found is None else found
