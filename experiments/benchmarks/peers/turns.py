"""How a system takes part: it runs one round whenever it is told to, and says how long that took.

The driver writes a line to standard input: ``round`` runs the next round, ``params FILE`` writes the server's parameters to an
npz file under the names of works.py; the end of the input ends the system. Each line is answered by one line of JSON. A system's
libraries print what they like to standard output, so that is led to standard error and answers have a channel of their own.
"""

import importlib.metadata
import json
import os
import sys
import time

import numpy as np
from works import Work, read


def read_arguments() -> Work:
    """Reads the work that the command line names: SCRIPT FILE A|B."""
    _, path, name = sys.argv[:3]
    return read(path, name)


def turns(packages: tuple[str, ...], read_params, **settings):
    """Yields the number of each round that is asked for; what the caller does until it asks for the next one is the round.

    packages: what the system is made of; their versions are reported. read_params: returns the server's parameters, by name.
    settings: what else to report, such as a number of lanes.
    """
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer):
        channel.write(json.dumps(answer) + "\n")
        channel.flush()

    say({"versions": {package: importlib.metadata.version(package) for package in packages}, "settings": settings})
    number = 0
    for line in sys.stdin:
        if line.startswith("params "):
            np.savez(line.removeprefix("params ").strip(), **read_params())
            say("written")
        else:
            began = time.perf_counter()
            yield number
            say({"seconds": time.perf_counter() - began})
            number += 1
