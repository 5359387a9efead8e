"""A worker as a process of its own, for tests that kill it: `python -m tests.system.worker_host '{"app": …}'`, options as WorkerConfig takes them."""

import asyncio
import json
import logging
import sys

from beltline.worker.config import WorkerConfig
from beltline.worker.serve import serve

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    options = json.loads(sys.argv[1])
    options["queues"] = {name: (slots, slots) for name, slots in options["queues"].items()}
    sys.exit(asyncio.run(serve(WorkerConfig(**options), on_ready=lambda supervisor: print("ready", supervisor.id, flush=True))))
