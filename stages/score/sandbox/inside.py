"""What starts inside the sandbox: sets the limits for good, says that it is ready, and becomes the program.

Its text is handed to the interpreter (`python -c`), for no file of the project is inside. Its arguments: seconds of
processor time, bytes of memory, processes, bytes of a file, length of the program, the pipe on which it says that it is
ready, and folders to import from. Its input holds the program, then what the program reads.
"""


def _program() -> bytes:
    import os
    import resource
    import sys

    cpu, memory, processes, file_size, length, ready, *folders = sys.argv[1:]
    text = b""
    while len(text) < int(length):
        text += os.read(0, int(length) - len(text)) or sys.exit("the program is cut off")
    sys.argv[:] = ["program.py"]
    sys.set_int_max_str_digits(0)  # a test may read and print longer ones; the limits below hold
    sys.path[:0] = folders
    for limit, value in {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_FSIZE: int(file_size),
        resource.RLIMIT_NPROC: int(processes),
        resource.RLIMIT_AS: int(memory),
    }.items():
        resource.setrlimit(limit, (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (int(cpu), int(cpu)))
    os.write(int(ready), b"ready")
    os.close(int(ready))
    return text


if __name__ == "__main__":
    exec(compile(_program(), "program.py", "exec"))
