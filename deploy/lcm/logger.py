"""Records everything on an LCM network with the logger of the extra `lcm`: `python -m deploy.lcm.logger FILE [URL]`.

The file is flushed ten times a second; `surefoot collect` makes a data set of it. The logger ends, and says so, when
the disk has less room left than is kept free: a third argument such as 5G, or 100M where none is given.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import lcm

from adapters.command import module_command
from adapters.errors import UserError
from deploy.lcm.channels import URL, connect

READY = "logger: ready"
# Room that the logger leaves on the disk: it does not notice a write that fails.
RESERVE = "100M"
# A channel that nobody but the logger listens to, and s between two messages on it.
HELLO, APART = "SUREFOOT_HELLO", 0.02


def announce(file: Path, url: str, logger: int) -> None:
    """Say that the logger records as soon as it does: what is sent until then is lost, and it says nothing itself.

    Args:
        file: what it writes.
        url: the network.
        logger: its process id; where it has ended there is nothing to say.
    """
    link = connect(url)
    while os.getppid() == logger:
        link.publish(HELLO, b"")
        time.sleep(APART)
        if file.exists() and file.stat().st_size:
            print(READY, flush=True)
            return


@module_command
def main(words: list[str]) -> None:
    """Become lcm-logger."""
    parser = argparse.ArgumentParser(prog="python -m deploy.lcm.logger", description=__doc__)
    parser.add_argument("file", type=Path, help="what to write, which must not be there yet")
    parser.add_argument("url", nargs="?", default=URL, help="LCM network (%(default)s)")
    parser.add_argument("reserve", nargs="?", default=RESERVE, help="room that is kept free (%(default)s)")
    settings = parser.parse_args(words)
    if settings.file.exists():
        raise UserError(f"{settings.file} is there already; give another name, or remove it.")
    logger = os.getpid()
    if os.fork() == 0:
        announce(settings.file, settings.url, logger)
        os._exit(0)
    options = [f"--lcm-url={settings.url}", f"--disk-quota={settings.reserve}"]
    os.execv(Path(lcm.LCM_BIN_DIR) / "lcm-logger", ["lcm-logger", *options, str(settings.file)])


if __name__ == "__main__":
    sys.exit(main())
