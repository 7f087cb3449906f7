"""The sandbox: what programs try and cannot, and that the next one runs as if nothing had happened."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import stages
from stages.contract.errors import ConfigError
from stages.score.sandbox import bubblewrap, interpreter
from stages.score.sandbox.limits import MIB, Limits
from stages.score.sandbox.sandbox import open_sandbox

SMALL = Limits(cpu=1, wall=20, memory=128 * MIB, processes=6, output=32 * 1024, files=MIB)
NAMED = "import ctypes; ctypes.CDLL(None).prctl(15, b'{name}')\n"
"""Gives the process a name by which it can be found from outside."""


@pytest.fixture(scope="module")
def sandbox():
    with open_sandbox(limits=SMALL) as opened:
        yield opened


@pytest.fixture
def attack(sandbox):
    """Runs a program, then proves that the next one is none the wiser."""

    def run(program, stdin=b""):
        outcome = sandbox.run(program, stdin)
        after = sandbox.run("print(sum(map(int, input().split())))", b"20 22\n")
        assert (after.end, after.code, after.stdout, after.stderr) == ("exit", 0, b"42\n", b"")
        return outcome

    return run


def named(name):
    """The processes of this name."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and (folder / "comm").read_text().strip() == name:
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_program_reads_prints_and_ends_with_its_code(sandbox):
    done = sandbox.run("import sys\nprint(input()[::-1])\nprint('ä', file=sys.stderr)\nsys.exit(3)", "Grüße".encode())
    assert (done.end, done.code, done.stdout, done.stderr) == ("exit", 3, "eßürG\n".encode(), "ä\n".encode())
    assert not done.succeeded
    broken = sandbox.run("print('before')\n1 / 0")
    assert (broken.end, broken.code, broken.stdout) == ("exit", 1, b"before\n")
    assert broken.stderr.endswith(b"ZeroDivisionError: division by zero\n")
    assert sandbox.run("def f(:").stderr.endswith(b"SyntaxError: invalid syntax\n")
    assert sandbox.run("print(__name__, len(open(0).read()))", b"x" * 300_000).stdout == b"__main__ 300000\n"
    assert sandbox.run("pass", b"x" * 300_000).succeeded  # nobody reads it
    assert sandbox.run("pass\x00").end == sandbox.run("'\ud800'").end == "exit"


def test_a_program_knows_the_standard_library_and_nothing_of_its_host(attack, tmp_path, monkeypatch):
    secret = tmp_path / "run.yaml"
    secret.write_text("secret")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    outcome = attack(
        "import os, sys, json, decimal, collections\n"
        "def reach(path):\n"
        "    try: return open(path).read(9)\n"
        "    except OSError as error: return type(error).__name__\n"
        f"for path in ['/etc/passwd', '/etc/hostname', '/proc/1/environ', '/proc/self/maps', {str(secret)!r}, "
        f"{__file__!r}, {interpreter.__file__!r}]: print(reach(path))\n"
        "print(sorted(os.environ), os.listdir('/tmp'), os.environ['HOME'])\n"
        "print([name for name in ('yaml', 'torch', 'stages') if __import__('importlib.util').util.find_spec(name)])\n"
        "def is_open(fd):\n    try: return bool(os.fstat(fd))\n    except OSError: return False\n"
        "print(list(filter(is_open, range(64))))"
    )
    *paths, environment, packages, opened = outcome.stdout.decode().splitlines()
    assert paths == ["FileNotFoundError"] * 7
    assert environment == f"{sorted([*bubblewrap.ENVIRONMENT, 'PWD'])} [] /tmp"
    assert packages == "[]"
    assert opened == "[0, 1, 2]"
    assert b"secret" not in outcome.stdout + outcome.stderr


def test_a_program_writes_nowhere_but_into_its_own_small_folder(attack):
    outcome = attack(
        "import os\n"
        "def write(path, count=1):\n"
        "    try:\n"
        "        with open(path, 'wb') as file: file.write(bytes(count))\n"
        "        return 'written'\n"
        "    except OSError as error: return type(error).__name__ + str(error.errno)\n"
        "here = os.path.dirname(os.__file__)\n"
        "print(*map(write, ['/x', '/usr/lib/x', '/dev/x', '/etc/ld.so.cache', here + '/x', '/tmp/x', '/dev/shm/x']))\n"
        f"print(write('/tmp/large', {SMALL.files + 1}), *(write(f'/tmp/{{i}}', 300_000) for i in range(4)))"
    )
    outside, filled = outcome.stdout.decode().splitlines()
    assert outside == "OSError30 OSError30 OSError30 OSError30 OSError30 written written"
    assert filled.split()[0] == filled.split()[-1] == "OSError28"
    assert attack("import os; print(os.listdir('/tmp'))").stdout == b"[]\n"


def test_a_fork_bomb_has_few_processes(attack):
    # Each fork that works sleeps, so that all live at once; what does not work is counted out. 200 forks at most.
    outcome = attack(
        "import os, time\nmade = 0\nfor _ in range(200):\n"
        "    try: child = os.fork()\n    except BlockingIOError: continue\n"
        "    if child == 0:\n        time.sleep(1); os._exit(0)\n    made += 1\nprint(made)"
    )
    assert outcome.stdout == b"%d\n" % (SMALL.processes - 1)


def test_a_memory_bomb_gets_no_memory(attack):
    outcome = attack("print(len(bytearray(64 << 20)))\nbytearray(256 << 20)")
    assert (outcome.stdout, outcome.code) == (b"67108864\n", 1)
    assert outcome.stderr.endswith(b"MemoryError\n")


def test_processes_together_get_no_more_memory_than_one(sandbox, attack):
    if not sandbox.groups[0]:
        pytest.skip("control groups cannot be written here: the memory of several processes is bounded one by one")
    outcome = attack(
        "import os, time\nfor i in range(5):\n"
        "    if os.fork() == 0:\n        block = bytearray(60 << 20); time.sleep(1); os._exit(0)\n"
        "print(sum(os.wait()[1] == 0 for i in range(5)))"
    )
    assert outcome.stdout in {
        b"",
        b"0\n",
        b"1\n",
        b"2\n",
    }  # at most two of 60 MiB fit; which is killed is the kernel's choice


def test_an_endless_loop_ends_at_its_processor_time(attack):
    assert attack("print('begun', flush=True)\nwhile True: pass").end == "cpu"
    assert attack("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass").end == "cpu"


def test_sleep_ends_at_its_time_on_the_clock():
    with open_sandbox(limits=Limits(cpu=1, wall=1)) as hasty:
        assert hasty.run("import os, time\nos.close(1); os.close(2)\ntime.sleep(99)").end == "wall"
        assert hasty.run("print(1)").stdout == b"1\n"


def test_a_flood_is_cut(attack):
    for stream in ("stdout", "stderr"):
        outcome = attack(f"import sys\nwhile True: sys.{stream}.write('x' * 4096)")
        assert outcome.end == "output"
        assert getattr(outcome, stream) == b"x" * SMALL.output


def test_the_network_is_not_there_not_even_this_host(attack):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        port = server.getsockname()[1]
        outcome = attack(f"import socket\nsocket.create_connection(('127.0.0.1', {port}))")
        assert outcome.stderr.endswith(b"PermissionError: [Errno 1] Operation not permitted\n")
        with pytest.raises(BlockingIOError):
            server.accept()
    assert attack("import socket\na, b = socket.socketpair(); a.send(b'x'); print(b.recv(1))").stdout == b"b'x'\n"


def test_a_program_can_kill_nobody_else(attack):
    outcome = attack(
        "import os, signal\nfor pid in (os.getppid(), 1, -1, "
        f"{os.getpid()}, {os.getppid()}):\n"
        "    try: os.kill(pid, signal.SIGKILL)\n    except OSError: pass\nprint('here')"
    )
    assert outcome.stdout == b"here\n"


def test_what_it_leaves_behind_does_not_outlive_it(attack):
    outcome = attack(
        NAMED.format(name="grpo-left")
        + "import os, time\n"
        + "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        + "        for fd in range(3): os.close(fd)\n        time.sleep(600)\n    os._exit(0)\n"
        + "os.wait(); print('left')"
    )
    assert outcome.stdout == b"left\n"
    assert named("grpo-left") == []


def test_calls_that_reach_for_the_kernel_are_denied(attack):
    outcome = attack(
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "for name, *arguments in (\n"
        "    ('ptrace', 0, 0, 0, 0), ('unshare', 0x10000000), ('shmget', 0, 1, 0), ('memfd_create', b'x', 0),\n"
        "    ('mount', 0, b'/tmp', b'tmpfs', 0, 0), ('prctl', 1, 0), ('syscall', 425, 1, 0), ('socket', 16, 3, 0),\n"
        "    ('prctl', 15, b'x'),\n"
        "):\n    ctypes.set_errno(0); print(getattr(libc, name)(*arguments), ctypes.get_errno())"
    )
    assert outcome.stdout.decode().splitlines() == ["-1 1"] * 8 + ["0 0"]


def test_a_program_dies_with_the_process_that_scores():
    program = NAMED.format(name="grpo-orphan") + "ctypes.CDLL(None).prctl(1, 0)\nimport time; time.sleep(600)"
    code = (
        "from stages.score.sandbox.sandbox import open_sandbox\n"
        f"with open_sandbox() as sandbox: sandbox.run({program!r})"
    )
    with tempfile.TemporaryDirectory() as folder:  # what it leaves there goes with it
        Path(folder).chmod(0o755)
        scorer = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"TMPDIR": folder})
        until(lambda: named("grpo-orphan") or scorer.poll() is not None)
        scorer.send_signal(signal.SIGKILL)
        scorer.wait()
    until(lambda: not named("grpo-orphan"))


def test_the_same_program_prints_the_same(sandbox):
    program = "print([hash(name) for name in ('a', 'b')], {'x', 'y', 'z', 'w'})"
    assert sandbox.run(program).stdout == sandbox.run(program).stdout != b""


def test_many_run_at_once_and_come_back_in_order(sandbox):
    seen = []
    answers = sandbox.each(
        lambda i: int(sandbox.run(f"print({i} ** 2)").stdout), range(12), lambda *at: seen.append(at)
    )
    assert answers == [i**2 for i in range(12)]
    assert seen == [(i + 1, 12) for i in range(12)]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two slots")
def test_what_runs_beside_a_failure_is_stopped_and_the_sandbox_works_on(sandbox):
    ended = []

    def one(i):
        if i == 0:
            until(lambda: named("grpo-beside"))
            raise KeyError("lost")
        ended.append(sandbox.run(NAMED.format(name="grpo-beside") + "import time; time.sleep(600)"))

    with pytest.raises(KeyError):
        sandbox.each(one, range(2))
    assert [outcome.end for outcome in ended] == ["wall"]
    assert sandbox.run("print(1)").stdout == b"1\n"


def test_chosen_packages_can_be_imported_and_no_others(tmp_path):
    for name in ("shown_package", "hidden_package"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("WORD = 'here'")
    with open_sandbox(limits=SMALL, packages=[tmp_path / "shown_package"]) as sandbox:
        assert sandbox.run("import shown_package\nprint(shown_package.WORD)").stdout == b"here\n"
        assert sandbox.run("import hidden_package").stderr.endswith(b"No module named 'hidden_package'\n")


def test_without_bubblewrap_it_is_refused_and_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(bubblewrap, "PLACES", str(tmp_path))
    with pytest.raises(ConfigError, match=r"needs the command bwrap.*apt install bubblewrap.*or set `mode: rlimit`"):
        open_sandbox().__enter__()


ORDINARY = """
import os
from stages.score.sandbox.limits import MIB, Limits
from stages.score.sandbox.sandbox import open_sandbox
assert os.getuid() != 0
for mode in ("bubblewrap", "rlimit"):
    with open_sandbox(mode, Limits(cpu=1, wall=20, memory=128 * MIB, processes=6)) as sandbox:
        for program in (
            "print('a file' if open('/etc/ld.so.cache', 'rb').read(1) else '')", "open('/proc/self/status')",
            "while True: pass", "bytearray(1 << 30)",
            "import os, time\\nmade = 0\\nfor _ in range(200):\\n    try: child = os.fork()\\n"
            "    except BlockingIOError: continue\\n    if child == 0:\\n        time.sleep(1); os._exit(0)\\n"
            "    made += 1\\nprint(made)",
            "print('next')",
        ):
            done = sandbox.run(program)
            print(mode, done.end, done.code, done.stdout.decode().strip())
"""


def with_what_it_needs(*command):
    """A command with this code and its interpreter, but without a home."""
    python = interpreter.running()
    shown = {path: path for path in (*python.shown, Path(stages.__path__[0]), Path("/usr/bin"))}
    options = ("--perms", "1777", "--tmpfs", "/tmp", *bubblewrap.binds(shown), "--bind", "/proc", "/proc")
    done = [*("bwrap", *options, "--dev", "/dev"), *command, str(python.file), "-S", "-c"]
    return done, os.environ | {"PYTHONPATH": str(Path(stages.__path__[0]).parent)}


def test_a_host_that_allows_no_namespaces_is_refused_with_bubblewraps_own_words():
    code = "from stages.score.sandbox.sandbox import open_sandbox\nwith open_sandbox(): print('opened')"
    command, environment = with_what_it_needs("--unshare-user", "--disable-userns", "--uid", "1000", "--gid", "1000")
    done = subprocess.run([*command, code], env=environment, cwd="/", capture_output=True, text=True, check=False)
    assert done.stdout == ""
    said = done.stderr.splitlines()[-1]
    assert "ConfigError: the sandbox for code does not work on this host (bwrap: " in said
    assert said.endswith(f"leave to make user namespaces, {bubblewrap.WEAKER}")


def test_an_ordinary_user_has_the_same_sandbox_and_a_weaker_one_by_name():
    command, environment = [sys.executable, "-c"], {**os.environ}
    if os.geteuid() == 0:
        kept = [word for name in ("SETUID", "SETGID", "SETPCAP") for word in ("--cap-add", f"CAP_{name}")]
        command, environment = with_what_it_needs(*kept, *bubblewrap.becoming(65099))
    done = subprocess.run([*command, ORDINARY], env=environment, cwd="/", capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "bubblewrap exit 0 a file",
        "bubblewrap exit 1 ",
        "bubblewrap cpu 137 ",
        "bubblewrap exit 1 ",
        "bubblewrap exit 0 5",
        "bubblewrap exit 0 next",
        "rlimit exit 0 a file",
        "rlimit exit 0 ",
        "rlimit cpu 137 ",
        "rlimit exit 1 ",
        "rlimit exit 0 5",
        "rlimit exit 0 next",
    ], done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="root only")
def test_root_is_refused_the_weaker_one():
    with pytest.raises(ConfigError, match="cannot hold a program that runs as root: start grpo as an ordinary user"):
        open_sandbox("rlimit").__enter__()


def test_a_host_that_can_start_nothing_is_the_sandboxs_failure_not_the_programs():
    code = (
        "import resource\n"
        "from stages.score.sandbox.sandbox import open_sandbox\n"
        "with open_sandbox() as sandbox:\n"
        "    before = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (8, before[1]))\n"
        "    print(sandbox.run('print(1)'))\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, before)\n"
        "    print(sandbox.run('print(1)').stdout)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    failed, worked = done.stdout.splitlines()
    assert failed == "Outcome(end='failure', code=1, stdout=b'', stderr=b'[Errno 24] Too many open files')"
    assert worked == "b'1\\n'"
