"""Gives a controller behind LCM an order: `python -m deploy.lcm.order stop`, or clear, start, reset-context."""

from __future__ import annotations

import argparse
import sys
import time

from adapters.command import module_command
from deploy.lcm.channels import ORDER, URL, connect
from deploy.lcm.generated.surefoot import order_t

ORDERS = {
    "stop": order_t.STOP,
    "clear": order_t.CLEAR,
    "start": order_t.START,
    "reset-context": order_t.RESET_CONTEXT,
}
# LCM may lose a message, and to carry an order out twice does no harm.
TIMES, APART = 3, 0.01


def give(what: int, url: str = URL) -> None:
    """Send an order, one of `order_t`'s, several times.

    Raises:
        UserError: there is no such network here.
    """
    link, message = connect(url), order_t()
    message.what = what
    for _ in range(TIMES):
        link.publish(ORDER, message.encode())
        time.sleep(APART)


@module_command
def main(words: list[str]) -> None:
    """Give one order."""
    parser = argparse.ArgumentParser(prog="python -m deploy.lcm.order", description=__doc__)
    parser.add_argument("order", choices=tuple(ORDERS))
    parser.add_argument("--url", default=URL, help="LCM network (%(default)s)")
    settings = parser.parse_args(words)
    give(ORDERS[settings.order], settings.url)


if __name__ == "__main__":
    sys.exit(main())
