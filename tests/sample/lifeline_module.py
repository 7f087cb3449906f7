"""The same process with the sampler's own lifeline: `python -m tests.sample.lifeline_module SOCKET LIFELINE`."""

import sys
from multiprocessing.connection import Connection

from stages.sample.vllm_worker import _die_with_parent
from tests.sample.process_modules import serve

if __name__ == "__main__":
    _die_with_parent(int(sys.argv[2]))
    serve(Connection(int(sys.argv[1])))
