"""The reward for programs: right, wrong, broken, and those that would forge it. Real programs in the real sandbox."""

import json

import pytest

from stages.contract.errors import DataError
from stages.score.reward_config import CodeReward
from stages.score.rewards import judge
from stages.score.verdict import Item

ADD = [
    {"function": "add", "arguments": [1, 2], "expected": 3},
    {"function": "add", "arguments": [-5, 5], "expected": 0},
]
PRINT_SUM = [{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "20 22\n", "stdout": "42\n"}]


def item(program, tests, place="answer"):
    completion = f"I think so:\n```python\n{program}\n```\n"
    answer, metadata = (json.dumps(tests), {}) if place == "answer" else (None, {place: tests})
    return Item(completion, 10, "code", answer, metadata, prompt_id=json.dumps(tests)[:80])


def marks(programs, tests, **settings):
    reward = CodeReward(type="code", **({"seconds": 1, "memory_mib": 128, "wall_seconds": 20} | settings))
    return judge(reward, [item(program, tests) for program in programs])


def values(programs, tests, **settings):
    return [(mark.value, mark.status) for mark in marks(programs, tests, **settings)]


def told(mark):
    return json.loads(mark.note)


def test_functions_are_called_and_their_values_compared():
    programs = {
        "def add(a, b):\n    return a + b": 1.0,
        "def add(a, b):\n    print('thinking', a, b)\n    return a + b": 1.0,
        "def add(a, b):\n    return 3": 0.5,
        "def add(a, b):\n    return a - b": 0.0,
        "def add(a, b):\n    return str(a + b)": 0.0,
        "def plus(a, b):\n    return a + b": 0.0,
        "def add(a):\n    return a": 0.0,
        "import sys\ndef add(a, b):\n    sys.exit(0)": 0.0,
        "def add(a, b:\n    return": 0.0,
        "import dataclasses as d\n@d.dataclass\nclass P:\n  x: 'int'\ndef add(a, b):\n    return P(a).x + b": 1.0,
        "def add(a, b):\n    return a + b\nif __name__ == '__main__':\n    1 / 0": 1.0,
    }
    assert values(programs, ADD) == [(value, "ok") for value in programs.values()]
    assert [value for value, _ in values(programs, ADD, credit="all")] == [float(v == 1) for v in programs.values()]


def test_methods_are_called_on_an_object_of_their_class():
    tests = [{"function": "Solution.twice", "arguments": [[1, {"a": None}]], "expected": [1, {"a": None}] * 2}]
    assert values(["class Solution:\n    def twice(self, x):\n        return x + x"], tests) == [(1.0, "ok")]


def test_programs_read_and_print():
    programs = {
        "print(sum(map(int, input().split())))": 1.0,
        "a, b = map(int, input().split())\nprint(a + b, end='')": 1.0,
        "import sys\nif __name__ == '__main__':\n    print(sum(map(int, sys.stdin.read().split())))": 1.0,
        "print(3)": 0.5,
        "print(input())": 0.0,
        "print(sum(map(int, input().split())))\nraise SystemExit(1)": 0.0,
        "def add(a, b): return a + b": 0.0,
        "import subprocess": 0.0,
    }
    assert values(programs, PRINT_SUM) == [(value, "ok") for value in programs.values()]


def test_a_program_may_read_and_print_numbers_of_any_length():
    """Tests that expect 10,000 digits were written when every interpreter gave them."""
    tests = [{"stdin": "9" * 10_000, "stdout": "1" + "0" * 10_000}]
    assert values(["print(int(input()) + 1)", "print(int(input()))"], tests) == [(1.0, "ok"), (0.0, "ok")]


def test_a_completion_without_a_program_earns_nothing():
    reward = CodeReward(type="code")
    nothing = judge(reward, [Item("no idea", 2, "code", json.dumps(ADD), {})])
    assert [(mark.value, mark.status, told(mark)["first"]) for mark in nothing] == [(0.0, "ok", "no program")]
    assert judge(reward, []) == []


def test_what_a_program_does_to_itself_is_its_own_verdict_and_the_next_is_judged_as_ever():
    right = "def add(a, b):\n    return a + b"
    deeds = {
        "def add(a, b):\n    while True: pass": "cpu",
        "def add(a, b):\n    return len(bytearray(1 << 30))": "crashed",
        "import os\ndef add(a, b):\n    os.kill(os.getpid(), 9); os.abort()": "crashed",
        "while True: print('x' * 10000)": "output",
        "def add(a, b):\n    return add(a, b)": "crashed",
        "def add(a, b):\n    return {a}": "crashed",
        "def add(a, b):\n    return 10 ** 5000": "wrong",
        "import json\ndef add(a, b):\n    return [json.loads('[' * 500 + ']' * 500)]": "wrong",
        "[" * 100_000: "crashed",
        "x = '\ud800'": "crashed",
        "x = 1\x00": "crashed",
    }
    programs = [program for deed in deeds for program in (deed, right)]
    judged = marks(programs, ADD)
    assert {mark.status for mark in judged} == {"ok"}
    assert [mark.value for mark in judged] == [0.0, 1.0] * len(deeds)
    assert [told(mark)["first"] for mark in judged[::2]] == list(deeds.values())
    assert told(judged[1]) == {"passed": 2, "tests": 2, "first": None}


def test_after_a_test_that_takes_all_its_time_no_other_is_tried():
    tests = [{"function": "add", "arguments": [n], "expected": n} for n in (0, 1, 2, 3)]
    (mark,) = marks(["def add(n):\n    while n == 1: pass\n    return n"], tests)
    assert (mark.value, told(mark)) == (0.25, {"passed": 1, "tests": 4, "first": "cpu"})


def test_a_program_that_sleeps_is_a_timeout_neither_right_nor_wrong():
    (mark,) = marks(["import time\ntime.sleep(60)"], PRINT_SUM, wall_seconds=1)
    assert (mark.value, mark.status, mark.message) == (None, "timeout", "no verdict in 1 s")


FORGERIES = {
    "leave with success": "import os\nos._exit(0)",
    "leave with success when called": "import os\ndef add(a, b):\n    os._exit(0)",
    "a value that equals everything": (
        "class Equal:\n    def __eq__(self, other): return True\ndef add(a, b):\n    return Equal()"
    ),
    "a number that equals everything": (
        "class Equal(int):\n    def __eq__(self, other): return True\n    __hash__ = None\n"
        "def add(a, b):\n    return Equal(7)"
    ),
    "look for the expected value in the callers": (
        "import sys\ndef add(a, b):\n    frame = sys._getframe()\n    while frame:\n"
        "        for name, value in {**frame.f_globals, **frame.f_locals}.items():\n"
        "            if 'expected' in name or isinstance(value, dict) and 'expected' in value:\n"
        "                return value['expected'] if isinstance(value, dict) else value\n"
        "        frame = frame.f_back\n    return 'none'"
    ),
    "look for the expected value in all objects": (
        "import gc\ndef add(a, b):\n    for value in gc.get_objects():\n"
        "        if type(value) is dict and 'expected' in value: return value['expected']\n    return 'none'"
    ),
    "patch what prints": (
        'import json\njson.dumps = lambda value: \'{"passed": true, "reward": 1.0}\'\ndef add(a, b):\n    return 0.5'
    ),
    "patch what compares": (
        "import builtins, math\nmath.isclose = lambda *a, **k: True\nbuiltins.isinstance = lambda *a: True\n"
        "def add(a, b):\n    return 0.5"
    ),
    "print a reward": (
        'import os\nfor fd in range(1, 20):\n    try: os.write(fd, b\'{"passed": 2, "tests": 2}\\n1.0\\nready\\n\')\n'
        "    except OSError: pass\nos._exit(0)"
    ),
    "read the rest of the input": (
        "import os, sys\ndef add(a, b):\n    return sys.stdin.read() + os.read(0, 99).decode()"
    ),
    "read its own memory": (
        "def add(a, b):\n    for name in ('maps', 'mem', 'environ', 'cmdline', 'fd/0'):\n"
        "        try: return open('/proc/self/' + name).read()\n        except OSError: pass\n    return 'none'"
    ),
    "kill those around it": (
        "import os, signal\nfor pid in (1, os.getppid(), -1):\n    try: os.kill(pid, signal.SIGKILL)\n"
        "    except OSError: pass\nos._exit(0)"
    ),
}


def test_a_forged_reward_is_none():
    right = "def add(a, b):\n    return a + b"
    secret = [{"function": "add", "arguments": [1, 2], "expected": 730_158}]
    judged = marks([*FORGERIES.values(), right], secret)
    assert [(mark.value, mark.status) for mark in judged] == [(0.0, "ok")] * (len(FORGERIES) + 1)
    assert values([right], ADD) == [(1.0, "ok")]


def test_expected_values_never_enter_the_sandbox():
    # The program gives the expected value back if it is anywhere in what it was given: input, arguments, objects.
    look = (
        "import gc, os, sys\n"
        "given = [sys.stdin.read(), sys.argv, os.environ, os.listdir('/tmp'), list(map(repr, gc.get_objects()))]\n"
        "told = repr(given)\n"
        "wanted = ''.join(['730', '158'])\n"
        "print(int(wanted) if wanted in told else 4)"
    )
    call = f"def add(a, b):\n    {look.replace(chr(10), chr(10) + '    ').replace('print(', 'return (')}"
    assert values([look], [{"stdin": "5", "stdout": "730158"}]) == [(0.0, "ok")]
    assert values([call], [{"function": "add", "arguments": [1, 2], "expected": 730158}]) == [(0.0, "ok")]
    assert values([look], [{"stdin": "730158", "stdout": "730158"}]) == [(1.0, "ok")]  # it would be seen
    assert values([call], [{"function": "add", "arguments": [1, [730158]], "expected": 730158}]) == [(1.0, "ok")]


def test_tests_may_stand_in_a_column_and_must_stand_somewhere():
    reward = CodeReward(type="code", tests="examples")
    assert judge(reward, [item("print(3)", PRINT_SUM, place="examples")])[0].value == 0.5
    with pytest.raises(DataError, match="no column 'examples', in which the reward code looks for tests"):
        judge(reward, [item("print(3)", PRINT_SUM)])
    with pytest.raises(DataError, match="the reward code needs tests"):
        judge(CodeReward(type="code"), [item("print(3)", PRINT_SUM, place="examples")])
    with pytest.raises(DataError, match=r"prompt p1, test 1: \{stdin, stdout\} or"):
        judge(CodeReward(type="code"), [Item("", 0, "code", '[{"assert": "f() == 1"}]', {}, prompt_id="p1")])
