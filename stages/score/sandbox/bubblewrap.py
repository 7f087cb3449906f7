"""The command line that runs a program in bubblewrap, with namespaces of its own and nothing but an interpreter inside.

Bubblewrap must not be started by root: what it shows would be root's, and the number of processes without limit. Root
becomes a user that owns nothing first; and shows that user, in a mount namespace of its own, those of the files that
lie where only root can reach them.
"""

import shlex
import shutil
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from stages.contract.errors import ConfigError
from stages.score.sandbox.groups import joining
from stages.score.sandbox.interpreter import PACKAGES, Interpreter
from stages.score.sandbox.limits import Limits

FIRST_USER = 65000
"""Number of the user that root becomes; one more for each program that runs beside it."""
WEAKER = "or set `mode: rlimit`, which limits a program but lets it read your files and use the network"
PLACES = "/usr/bin:/bin:/usr/local/bin:/usr/sbin"
ENVIRONMENT = {"PATH": "/usr/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}


def found(name: str) -> Path:
    """The file of a command.

    Raises:
        ConfigError: the host has none.
    """
    where = shutil.which(name, path=PLACES)
    if where is None:
        raise ConfigError(
            f"the sandbox for code needs the command {name}, which this host does not have: install bubblewrap 0.8 or "
            f"newer and util-linux (`apt install bubblewrap`), {WEAKER}"
        )
    return Path(where).resolve()


def command(
    interpreter: Interpreter,
    packages: Sequence[Path],
    limits: Limits,
    user: int | None,
    scratch: Path,
    groups: Sequence[Path],
    filter_fd: int,
    told_fd: int,
) -> list[str]:
    """Everything before the interpreter's own command line.

    Args:
        interpreter: what is shown of the host.
        packages: shown too, in a folder of their own.
        limits: of which the size of files is kept here.
        user: whom root becomes; None for an ordinary user, who stays who he is.
        scratch: an empty folder, in which root shows what others cannot reach.
        groups: control groups to enter.
        filter_fd: holds the filter of system calls.
        told_fd: where bubblewrap tells the program's process.
    """
    bwrap = str(found("bwrap"))
    shown = {path: path for path in interpreter.shown} | {Path(PACKAGES, path.name): path for path in packages}
    before: list[str] = []
    if user is not None:
        lent = [source for source in shown.values() if not reachable(source)]
        moved = {source: scratch / str(i) / source.name for i, source in enumerate(lent)}
        shown = {place: moved.get(source, source) for place, source in shown.items()}
        before = [*(lending(moved, scratch) if moved else []), *becoming(user)]
    small = [option for folder in ("/tmp", "/dev/shm") for option in ("--size", str(limits.files), "--tmpfs", folder)]
    return [
        *joining(groups),
        *before,
        *(bwrap, "--unshare-user", "--unshare-all", "--disable-userns", "--die-with-parent"),
        *("--new-session", "--as-pid-1", "--info-fd", str(told_fd)),
        *("--clearenv", *(part for pair in ENVIRONMENT.items() for part in ("--setenv", *pair))),
        *binds(shown),
        *(option for path in interpreter.hidden for option in ("--tmpfs", str(path))),
        *("--perms", "0755", "--dir", PACKAGES, "--dev", "/dev", *small, "--remount-ro", "/dev"),
        *("--chdir", "/tmp", "--remount-ro", "/", "--seccomp", str(filter_fd), "--"),
    ]


def reachable(path: Path) -> bool:
    """Whether a user who owns nothing can read it."""
    through = all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)
    wanted = stat.S_IROTH | (stat.S_IXOTH if path.is_dir() else 0)
    return through and path.stat().st_mode & wanted == wanted


def lending(moved: Mapping[Path, Path], scratch: Path) -> list[str]:
    """Shows sources at places that anyone can reach, to nobody but the processes that come after it."""
    steps = [f"mount -t tmpfs -o mode=0755 sandbox {shlex.quote(str(scratch))}"]
    for source, place in moved.items():
        made = "mkdir" if source.is_dir() else "touch"
        quoted = shlex.quote(str(place))
        steps += [f"mkdir {shlex.quote(str(place.parent))}", f"{made} {quoted}"]
        steps += [f"mount --bind {shlex.quote(str(source))} {quoted}"]
    script = " && ".join([*steps, 'exec "$@"'])
    return [str(found("unshare")), "--mount", "--propagation", "private", "--", "/bin/sh", "-c", script, "sh"]


def becoming(user: int) -> list[str]:
    """Becomes a user, for good, with nothing that root had."""
    who = ("--reuid", str(user), "--regid", str(user), "--clear-groups")
    return [str(found("setpriv")), *who, "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--"]


def binds(shown: Mapping[Path, Path]) -> list[str]:
    """Options that show sources at their places, read-only.

    The folders above them are made first: bubblewrap would make them readable by their owner alone.
    """
    above = {parent for place in shown for parent in place.parents if parent != Path("/")}
    folders = [option for folder in sorted(above) for option in ("--perms", "0755", "--dir", str(folder))]
    return folders + [option for place, source in shown.items() for option in ("--ro-bind", str(source), str(place))]
