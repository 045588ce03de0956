"""Detokenizers against a table that was written, case by case, from the published rules."""

import pytest

from flm_jax.core.errors import UserError
from flm_jax.data.corpus.detokenizers import DETOKENIZERS, get_detokenizer

# What stays as it was is as much a rule as what changes: those cases have no second text.
_CASES = {
    "lm1b": [
        ("We do n't know , he 's out .", "We do n't know, he's out."),
        ("They can not win .", "They can not win."),
        ("It rose 3 % .",),
        ("3 % of them",),
        ("a well - known man",),
        ("a well-known man -- and 1990-91",),
        ('" Go , " she said .', '"Go," she said.'),
        ('" a " and " b "', '"a" and "b"'),
        ('" one that does not close',),
        ("`` Go , '' he said .", "`` Go, '' he said."),
        ("' quoted words ' here", "'quoted words' here"),
        ("the players ' bar",),
        ("rock 'n' roll", "rock'n' roll"),
        ("they 're , I 'm , we 've", "they're, I'm, we've"),
        ("The $ 5 bill", "The $5 bill"),
        ("$ 5 , or £ 6 .", "$5, or £6."),
        ("€ 5",),
        ("see http : / / a.org / b", "see http://a.org/b"),
        ("https : / / x", "https://x"),
        ("ftp : / / x", "ftp:// x"),
        ("10 : 30 a.m.", "10: 30 a.m."),
        ("a ; b", "a; b"),
        ("either / or", "either/or"),
        ("( twice ) and [ once ]", "(twice) and [once]"),
        ("( a ( b ) c )", "( a (b) c )"),
        ("{ a }",),
        ("( yes ) . Next", "(yes) . Next"),
        ("why ?", "why?"),
        ("why ? because", "why? because"),
        ("stop !", "stop!"),
        ("no ! yes", "no! yes"),
        ("what ? !", "what?!"),
        ("the U . S . team", "the U. S . team"),
        ("Hello . Bye .", "Hello . Bye."),
        ("it is x .\n", "it is x.\n"),
        ("a , , b", "a, , b"),
        ("one ,", "one ,"),
    ],
    "wikitext": [
        (" = Title = \n", " = Title =\n"),
        (" = = Heading = = \n", " == Heading ==\n"),
        (" = = = Sub = = = ", " === Sub === "),
        ("= = = = X", "==== X"),
        ("the well @-@ known 1 @,@ 000 at 3 @.@ 5", "the well-known 1,000 at 3.5"),
        ("one , two ; three : four", "one, two; three: four"),
        ("He left . She stayed .", "He left. She stayed ."),
        ("Why ? No !", "Why? No !"),
        ("the boys ' toys", "the boys' toys"),
        ("it 's", "it's"),
        ("he did n't",),
        ("( born 1990 ) [ sic ] { a }", "(born 1990) [sic] {a}"),
        ("( )", "()"),
        ('the " big " one', 'the "big" one'),
        ("the ' big ' one", "the 'big' one"),
        ("20 ° C", "20°C"),
        ("a \n b", "a\nb"),
        ("score N of", "score 1 of"),
        ("a/' 5/b", "a/'[0-9]/b"),
        ("<unk> was",),
        ("and / or",),
    ],
    "ptb": [
        ("it 's N % of", "it's 1 % of"),
        ("the dogs ' bowl", "the dogs' bowl"),
        ("I do n't , we ca n't", "I don't , we can't"),
        ("N N N x", "N 1 1 x"),
        ("$ N million", "$1 million"),
        ("# N due", "#1 due"),
        ("ends in N",),
        ("<unk> ate", "? ate"),
        ("N\\/N", "N/N"),
        ("a \n b", "a\nb"),
        ("it , he",),
    ],
    "lambada": [
        (" “ hi , ” he said . ", '\n" hi , " he said .'),
        ("plain", "\nplain"),
        ("\n\ntext \n", "\ntext"),
        ("‘ a ’", "\n‘ a ’"),
    ],
    "scientific_papers": [
        ("the ( first ) result . we do n't", "the (first) result. we do n't"),
        ("it ends here .", "it ends here."),
        ("@xmath0 , we", "@xmath0, we"),
        ("cost $ 5 / unit", "cost $5/unit"),
        ("is it ? \n yes", "is it?\nyes"),
    ],
}


def test_the_table_is_long_and_names_every_set():
    assert sum(map(len, _CASES.values())) >= 60
    assert set(_CASES) == set(DETOKENIZERS)


@pytest.mark.parametrize("name", _CASES)
def test_detokenizers_follow_the_published_rules(name):
    clean = get_detokenizer(name)
    wrong = [
        (raw, clean(raw), want)
        for raw, *new in _CASES[name]
        if clean(raw) != (want := new[0] if new else raw)
    ]
    assert not wrong


def test_names_of_detokenizers():
    assert get_detokenizer("")(" a , b ") == " a , b "
    with pytest.raises(UserError, match="did you mean 'wikitext'"):
        get_detokenizer("wikitxt")
