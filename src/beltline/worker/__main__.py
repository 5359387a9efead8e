"""`python -m beltline.worker …`: how a supervisor starts a runner. People start workers with `beltline worker`."""

import sys

from beltline.worker.runner import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
