"""Records everything on an LCM network with the logger of the extra `lcm`: `python -m deploy.lcm.logger FILE [URL]`.

The file is flushed ten times a second; `surefoot collect` makes a data set of it. The logger ends, and says so, when
the disk has less room left than is kept free: a third argument such as 5G, or 100M where none is given.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import lcm

from deploy.lcm.channels import URL

READY = "logger: ready"
# Room that the logger leaves on the disk: it does not notice a write that fails.
RESERVE = "100M"


def main() -> None:
    """Become lcm-logger."""
    file, url, reserve = (*sys.argv[1:], *("", URL, RESERVE)[len(sys.argv) - 1 :])
    print(READY, flush=True)
    options = [f"--lcm-url={url}", "--force", f"--disk-quota={reserve}"]
    os.execv(Path(lcm.LCM_BIN_DIR) / "lcm-logger", ["lcm-logger", *options, file])


if __name__ == "__main__":
    main()
