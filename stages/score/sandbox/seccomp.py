"""The filter of system calls, as a program for the kernel (seccomp BPF). Pure.

The sandbox stands on namespaces; the filter takes away what a program that only computes never needs and what has let
others out of namespaces before: tracing, keyrings, mounts, BPF, io_uring, memory that no limit counts, and sockets
other than those between processes of the sandbox.
"""

import platform
import struct

from stages.contract.errors import ConfigError
from stages.contract.lifeline import PR_SET_PDEATHSIG

# Numbers of the kernel's interface: (x86_64, aarch64).
DENIED = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "syslog": (103, 116),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
}
SOCKET, PRCTL = (41, 198), (157, 167)
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the table above, and the kernel's own name (AUDIT_ARCH)."""
OTHER_TABLE = 0x40000000
"""Bit of the numbers of x86_64's second table of calls (x32), which is denied whole."""
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16
ALLOW, DENY, KILL = 0x7FFF0000, 0x00050001, 0x80000000
"""What the kernel does with a call; a denied one returns EPERM."""
AF_UNIX = 1


def syscall_filter() -> bytes:
    """The filter for this machine.

    Raises:
        ConfigError: the numbers of this machine's system calls are not known here.
    """
    machine = platform.machine()
    if machine not in MACHINES:
        raise ConfigError(
            f"the sandbox has no filter of system calls for {machine}, only for {' and '.join(MACHINES)}: "
            "score on such a machine"
        )
    column, architecture = MACHINES[machine]
    denied = [numbers[column] for numbers in DENIED.values()]
    steps = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, len(denied) + 6, 0, OTHER_TABLE),
        *((EQUAL, len(denied) + 5 - i, 0, number) for i, number in enumerate(denied)),
        (EQUAL, 0, 2, SOCKET[column]),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (EQUAL, 4, 3, AF_UNIX),
        (EQUAL, 0, 3, PRCTL[column]),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (EQUAL, 0, 1, PR_SET_PDEATHSIG),  # a program that could take this back would outlive a scorer that is killed
        (RETURN, 0, 0, DENY),
        (RETURN, 0, 0, ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
