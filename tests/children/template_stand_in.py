"""A template whose workers run the file that the variable CHILD names, instead of a handler; exec'ed like the real one."""

import os
import runpy
import sys

from supervisor.template.main import run


def enter(start):
    runpy.run_path(os.environ["CHILD"], init_globals={"start": start})
    os._exit(0)


if __name__ == "__main__":
    run(sys.argv[1:], lambda: enter)
