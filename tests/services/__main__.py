"""`make services`: start what can be started, print the URLs, stop at Ctrl-C. The tests start their own; this is for trying things by hand."""

import contextlib
import signal
import sys

from tests.services import keeper, pooler
from tests.services.discovery import servers
from tests.services.install import install
from tests.services.pooler import Pooler
from tests.services.postgres import PostgresServer, ServerFailedError


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        install()
        start()
        print("Empty, in memory, gone at the end. Ctrl-C stops them.", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        print()
    except ServerFailedError as error:
        sys.exit(str(error))
    finally:
        keeper.close()


def start() -> None:
    running = []
    for found in servers():
        if found.bin is None:
            print(f"missing: {found.reason}", flush=True)
            continue
        server = PostgresServer(found)
        server.start()
        running.append(server)
        version = ".".join(str(part) for part in server.version)
        print(f"PostgreSQL {version:<8} {server.url(server.create_database('beltline'))}", flush=True)
    if not running:
        return
    if reason := pooler.missing():
        print(f"missing: {reason}", flush=True)
        return
    between = Pooler(running[0])
    between.start()
    print(f"{'through a pooler':<19} {between.url('beltline')}", flush=True)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
