"""Records everything on an LCM network with the logger of the extra `lcm`: `python -m deploy.lcm.logger FILE [URL]`.

The file is flushed ten times a second; `surefoot collect` makes a data set of it. The logger ends, and says so, when
the disk has less room left than is kept free: a third argument such as 5G, or 100M where none is given.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import lcm

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


def main() -> None:
    """Become lcm-logger."""
    file, url, reserve = (*sys.argv[1:], *("", URL, RESERVE)[len(sys.argv) - 1 :])
    Path(file).unlink(missing_ok=True)
    logger = os.getpid()
    if os.fork() == 0:
        announce(Path(file), url, logger)
        os._exit(0)
    options = [f"--lcm-url={url}", "--force", f"--disk-quota={reserve}"]
    os.execv(Path(lcm.LCM_BIN_DIR) / "lcm-logger", ["lcm-logger", *options, file])


if __name__ == "__main__":
    main()
