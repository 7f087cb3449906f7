"""The reward for mathematical answers: what is equal, what only looks equal, and what would hold a verifier."""

import time
from fractions import Fraction

import pytest

from stages.contract.errors import DataError
from stages.score.answers.latex import number, tight
from stages.score.reward_config import MathReward
from stages.score.rewards import judge
from stages.score.verdict import Item

RIGHT = r"""
5 == 5 ; 5.0 ; +5 ; 05 ; 5. ; $5$ ; $5$. ; \$5 ; \(5\) ; \[5\] ; **5** ; \boxed{5} ; so \boxed{5}, I hope. ; (5)
5 == 10/2 ; \frac{10}{2} ; 2+3 ; 9-4 ; \sqrt{25} ; |-5| ; x=5 ; x = 5 ; 0.5e1 ; \text{5} ; 5 \quad
-5 == −5 ; -5.0 ; -10/2 ; -\frac{10}{2} ; \frac{-10}{2}
1/2 == 0.5 ; .5 ; \frac12 ; \frac{1}{2} ; \dfrac{1}{2} ; \tfrac12 ; 2/4 ; 0.50 ; 5e-1 ; 1 / 2
\frac{1}{2} == 0.5 ; 1/2 ; \frac 12 ; \boxed{\frac{1}{2}}
7/2 == 3.5 ; 3 1/2 ; 3\frac{1}{2} ; 3\frac12
12345 == 12,345 ; $12,345$ ; 12{,}345 ; 12\,345 ; 12,345.0 ; \$12,345 ; 12,345 \text{ miles}
1,000,000 == 1000000 ; 10^6 ; 1e6 ; 10^{6}
1500 == 1.5\times10^{3} ; 1.5 × 10^3
5 == 5 cm ; 5 \text{ cm} ; 5\text{ cm}^2 ; 5\,\mathrm{cm} ; 5 dollars ; 5 units
6\text{ cm} == 6 ; 6 cm
30 == 30^\circ ; 30^{\circ} ; 30° ; 30 degrees
10\% == 10% ; 10 percent ; 10 ; 0.1
(3,4) == (3, 4) ; \left(3,4\right) ; (3.0, \frac{8}{2}) ; (x,y)=(3,4) ; $(3,4)$
(1,2,3) == (1, 2, 3) ; (1,2,\sqrt{9})
[0,1) == [0, 1) ; \left[0,1\right)
(-\infty,3] == (-\infty, 3] ; (-∞,3]
(0,1)\cup(2,3) == (2,3)\cup(0,1)
\{1,2\} == \{2,1\} ; \left\{1,2\right\} ; 1,2 ; 2, 1
1,2 == 2,1 ; 1, 2 ; 1 and 2 ; 1 \text{ or } 2 ; x=1 or x=2 ; \{1,2\}
\pm 7 == 7,-7 ; -7, 7
\frac{\sqrt{2}}{2} == \frac{1}{\sqrt{2}} ; \sqrt{2}/2 ; 1/\sqrt2 ; sqrt(2)/2 ; √2/2
2\pi == 2π ; \pi\cdot 2 ; \frac{4\pi}{2}
x^2+2x+1 == (x+1)^2 ; 1+2x+x^2 ; (1+x)(x+1)
(x-1)(x+1) == x^2-1
y=2x+3 == 2x+3 ; y=3+2x
x\le 3 == x \leq 3 ; 3 \ge x ; x<=3 ; (-\infty,3]
3+4i == 4i+3
e^2 == e^{2} ; \exp(2)
\log_2 8 == 3
\binom{5}{2} == 10
\sin x == \sin(x)
\begin{pmatrix}1\\2\end{pmatrix} == \begin{pmatrix} 1 \\ 2 \end{pmatrix}
\text{Monday} == Monday ; \text{monday}
C == (C) ; \text{C} ; \text{(C)} ; C.
101_2 == 101 ; 101_{2}
~5 == 5 ; 5.0 ; ~5
5,6 == 5,~6
5 == 5~\text{cm}
"""
WRONG = r"""
5 == 4=5 ; \boxed{4=5} ; 2+3=5 ; x=5=5 ; x=5,y=6 ; 5=5 ; 5<6 ; 5 \neq 6
5 == {5} ; \{5\} ; 5,5 ; \{5,5\}
5 == -5 ; 50 ; 5x ; 5s ; 5! ; 5.000001 ; five ; 5 5 ; 5 million ; 5\text{ million} ; 6, so not 5
5 == 5 \approx 5.1 ; 5 ≈ 5.1 ; 5 \to 6 ; 5 \equiv 12 ; \text{5 is wrong} ; 5\text{ is incorrect} ; 5 maybe 6 ; \pm 5
5 == ~5 ; $~5$ ; \boxed{~5} ; ~ 5 ; 5_2 ; 5_{3} ; 5_{\text{two}}
101 == 101_2 ; 101_{2} ; 101 _2
101_2 == 101_3 ; 5_2
2,3 == 2,3,3 ; 2,2,3 ; 2,3,4 ; (2,3) ; 2 ; 2.3
1/2 == 50% ; \frac{1}{2}\% ; 0.49999999999 ; 1/2x
5 == 4 ; \frac{5}{2} ; 5/0 ; \boxed{} ; x
10 == 10% ; 10 % ; 10\% ; 10 percent ; 10\text{ percent} ; 0.1
42 == 42 is wrong ; 42 \text{ is wrong} ; not 42 ; the answer is 42 ; it is 42, I think
7 == 5 or 7 ; 5, 7 ; 5 \text{ or } 7 ; $5$ or $7$ ; 5 and 7 ; 5;7 ; 7 or ; 7:2
(3,4) == {3,4} ; \{3,4\} ; 3,4 ; [3,4] ; (3,4] ; (4,3) ; (3,4,5) ; (3) ; 34
[0,1) == [0,1] ; (0,1) ; 0,1
\{1,2\} == \{1\} ; \{1,3\} ; (1,2) ; \{1,2,3\}
1,2 == 1 ; (1,2) ; 12 ; 1.2
5\text{ million} == 5 ; 5 cm
6\text{ cm} == 6 \text{ inches} ; 6 cm^2 ; 7
0.0000001 == 0.0000002 ; 0
1/3 == 0.33 ; 3 ; 1/2
\sqrt{2} == 1.41 ; 2 ; \sqrt{3}
2\pi == 6.28 ; \pi ; 2
x=5 == y=5 ; 4=5 ; x=4
x+1 == y+1 ; x-1 ; x
\text{Monday} == Tuesday ; day
A == B ; AB
(1,234) == (1234)
"""
HOSTILE = [
    r"9^9^9^9",
    r"9^{9^{9^9}}",
    r"10**10**10",
    r"1000000!",
    r"2^{2^{2^{2^{2^2}}}}",
    r"\binom{10^9}{5\cdot 10^8}",
    "(" * 400 + "1" + ")" * 400,
    "{" * 50_000 + "}" * 50_000,
    "(" * 100_000,
    "[" * 900,
    r"\boxed{" * 15_000,
    r"\left(" * 150,
    r"\sqrt" * 190,
    "$" * 999,
    "=," * 450,
    "|" * 30,
    "1," * 450,
    "the answer is " * 70 + "5",
    "9" * 900,
    "9" * 100_000,
    "1e999999999",
    r"\frac{1}{0}",
    "0/0",
    "\ud800",
    "5\ud800",
    "5\x00",
    "\x00",
    "",
    " \n",
]


def cases(table):
    return [
        (gold, answer)
        for gold, _, answers in (line.partition(" == ") for line in table.strip().splitlines())
        for answer in answers.split(" ; ")
    ]


def judged(pairs, **options):
    items = [Item(answer, 1, "math", gold, {}) for gold, answer in pairs]
    return judge(MathReward(type="math", **options), items)


def test_answers_that_are_equal():
    pairs = cases(RIGHT)
    marks = judged(pairs)
    assert len(pairs) > 120
    assert [pair for pair, mark in zip(pairs, marks, strict=True) if mark.value != 1.0] == []


def test_answers_that_are_not_equal_though_some_look_it():
    pairs = cases(WRONG)
    marks = judged(pairs)
    assert len(pairs) > 90
    assert [(pair, mark) for pair, mark in zip(pairs, marks, strict=True) if mark.value != 0.0] == []


def test_every_right_answer_equals_itself():
    golds = sorted({gold for gold, _ in cases(RIGHT) + cases(WRONG)})
    assert [mark.value for mark in judged([(gold, gold) for gold in golds])] == [1.0] * len(golds)


def test_hostile_answers_end_in_time_with_a_status_and_harm_no_other():
    pairs = [("5", text) for text in HOSTILE]
    honest = [("x+1", "1+x")] * 4
    start = time.monotonic()
    marks = judged(honest[:2] + pairs + honest[2:], timeout=0.5)
    assert time.monotonic() - start < 30
    assert [mark.value for mark in marks[:2] + marks[-2:]] == [1.0] * 4
    assert not [(text[:20], mark) for text, mark in zip(HOSTILE, marks[2:-2], strict=True) if mark.value == 1.0]
    slow = {text for text, mark in zip(HOSTILE, marks[2:-2], strict=True) if mark.status == "timeout"}
    assert {"1000000!", r"9^{9^{9^9}}", r"2^{2^{2^{2^{2^2}}}}"} <= slow
    assert all(mark.value is None for mark in marks if mark.status != "ok")


def test_an_honest_answer_that_takes_too_long_is_a_timeout_not_wrong():
    (mark,) = judged([(r"(x+1)^{4000}", r"(x^2+2x+1)^{2000}")], timeout=0.5)
    assert (mark.value, mark.status, mark.message) == (None, "timeout", "no verdict in 0.5 s")


def test_a_right_answer_that_cannot_be_parsed_is_an_error_unless_the_text_is_the_same():
    gold = r"\begin{cases}1\\2"
    same, other = judged([(gold, gold), (gold, "x")])
    assert same.value == 1.0
    assert (other.value, other.status) == (None, "error")
    assert other.message is not None
    assert "cannot parse the right answer" in other.message


def test_the_answer_is_cut_out_before_it_is_judged():
    pairs = [("5", "<answer>5</answer>"), ("5", "5"), ("5", "<answer></answer>")]
    assert [mark.value for mark in judged(pairs, extract="answer_tag")] == [1, 0, 0]
    assert [mark.value for mark in judged([("5", r"4 or \boxed{5}"), ("5", "5")], extract="boxed")] == [1, 0]


def test_an_item_without_a_right_answer_is_refused_unless_its_task_is_not_judged():
    items = [Item("5", 1, "math", "5", {}), Item("5", 1, "talk", None, {})]
    with pytest.raises(DataError, match="answer_field"):
        judge(MathReward(type="math"), items)
    assert [mark.status for mark in judge(MathReward(type="math", tasks=("math",)), items)] == ["ok", "null"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("3x + 2", "3x+2"),
        ("1 2", "1 2"),
        ("a b  c", "a b c"),
        ("( 1 , 2 )", "(1,2)"),
        (r"\sin x", r"\sin x"),
        (r"\sin (x) / 2", r"\sin(x)/2"),
    ],
)
def test_spaces_that_part_nothing_are_no_difference(text, wanted):
    assert tight(text) == wanted


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("-0.250", Fraction(-1, 4)),
        ("1e-3", Fraction(1, 1000)),
        ("2/6", Fraction(1, 3)),
        (r"-\dfrac{2}{6}", Fraction(-1, 3)),
        ("-3 1/2", Fraction(-7, 2)),
        (r"3\frac{1}{2}", Fraction(7, 2)),
        ("31/2", Fraction(31, 2)),
        ("1/0", None),
        ("1e999999999", None),
        ("-1e-999999999", None),
        ("9" * 5000, None),
        ("5x", None),
        ("1,2", None),
        ("", None),
        ("-", None),
        (".", None),
        ("nan", None),
        ("inf", None),
    ],
)
def test_numbers_are_exact_and_none_is_too_large_to_hold(text, value):
    assert number(text) == value
