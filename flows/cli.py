"""The command `grpo`."""

import io
import sys

import typer
from rich.console import Console
from rich.markup import escape

from flows.commands import (
    data,
    forks,
    nights,
    policies,
    reading,
    rescoring,
    serving,
    space,
    training,
)
from stages.contract.errors import GrpoError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, help=__doc__)
for part in (
    training,
    data,
    serving,
    forks,
    space,
    reading,
    rescoring,
    policies,
    nights,
):
    app.add_typer(part.app)

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def main() -> None:
    """Runs the command; what the user can mend is one message and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # through a pipe too, a line is there when it is written
    try:
        app()
    except GrpoError as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        Console(stderr=True).print(f"[red]error:[/red] {escape(f'{error.strerror or error}{where}')}", highlight=False)
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            Console(stderr=True).print("stopped; the same command goes on from the last stage in place")
        raise


if __name__ == "__main__":
    main()
