"""The command line: one lazy dispatcher over Hydra applications, `surefoot COMMAND [key=value ...]`."""

from __future__ import annotations

import importlib
import os
import sys

from adapters.command import CommandFailed, explain

COMMANDS = {
    "collect": ("sim.collect", "roll behaviour policies out into a data set"),
    "convert": ("sim.convert", "write a data set in another file form, or for another task"),
    "upsample": ("offline_train.diffusion.upsample", "draw a larger data set from a model of a log"),
    "train": ("offline_train.train", "train a world model and a policy from logs"),
    "tune": ("offline_train.tune", "look for the best settings of an algorithm"),
    "select": ("offline_train.select", "choose among finished runs without an environment"),
    "adapt": ("offline_train.adapt", "correct a run with a log of the changed robot"),
    "export": ("offline_train.export", "turn a training run into a bundle for the robot"),
    "validate": ("sim.validate", "run a bundle in MuJoCo over changed dynamics"),
    "run": ("sim.run", "drive a robot with a bundle"),
    "bench": ("offline_train.bench", "measure speeds, with the peers' figures beside them"),
    "inspect": ("deploy.inspect", "say what a bundle is, and whether it is whole"),
    "demo": ("offline_train.demo", "the whole job on HalfCheetah: train, export, validate, report"),
}

USAGE = "\n".join(
    [
        "usage: surefoot COMMAND [key=value ...] [--help] [--debug]\n",
        *(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()),
        "\n`surefoot COMMAND --help` tells what a command takes and shows its settings;",
        "--debug shows the traceback behind an error.",
    ]
)

# Hydra would take `perturbations=` for a config group, because the suites lie in a folder of that name;
# a suite is a list of worlds, which Hydra cannot compose, so its name travels under another key.
ALIASES = {"perturbations=": "suite="}


def main() -> None:
    """Run one command; a person's mistake ends with one line and exit code 2."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    command, *overrides = arguments
    if command not in COMMANDS:
        sys.exit(_complain(f"there is no command '{command}'; choose one of {', '.join(COMMANDS)}."))
    for name, alias in ALIASES.items():
        overrides = [alias + o.removeprefix(name) if o.startswith(name) else o for o in overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [f"surefoot {command}", *overrides]
    try:
        importlib.import_module(COMMANDS[command][0]).main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except (Exception, CommandFailed) as failure:
        error = failure.__cause__ if isinstance(failure, CommandFailed) else failure
        if isinstance(error, BrokenPipeError):
            # Whoever read the output (head, less) has gone; nothing may be written any more, not even at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        message = explain(error)
        if debug or message is None:
            raise
        sys.exit(_complain(message))


def _complain(message: str) -> int:
    """Print one line to standard error and return the exit code for bad input."""
    print(f"surefoot: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
