"""The same process with the sampler's own lifeline: `python -m tests.sample.lifeline_module SOCKET LIFELINE`."""

import sys
from multiprocessing.connection import Connection

from stages.contract.lifeline import end_group, end_with
from tests.sample.process_modules import serve

if __name__ == "__main__":
    end_with(int(sys.argv[2]))
    serve(Connection(int(sys.argv[1])))
    end_group()
