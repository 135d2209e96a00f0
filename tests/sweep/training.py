"""A training as `neftune sweep` runs it, which learns nothing: its loss is a formula. It tells of itself in a ledger.

Environment: LEDGER, a file; SECONDS, how long it takes; WORKER, whose training it is; OTHER, a worker without whose
beginning it does not end; ENDLESS, the number of this worker's training that does not end.
"""

import argparse
import json
import os
import subprocess
import sys
import time

from neftune_plugins import curve

STEPS = 4
BROKEN = 13.0  # an alpha with which it fails


def tell(event: str, **about: object) -> None:
    with open(os.environ["LEDGER"], "a") as file:
        file.write(json.dumps({"event": event, "worker": os.environ.get("WORKER"), **about}) + "\n")


def begun(worker: str) -> int:
    """How many trainings this worker has begun."""
    with open(os.environ["LEDGER"]) as file:
        events = [json.loads(line) for line in file]
    return sum((one["event"], one["worker"]) == ("begin", worker) for one in events)


def wait() -> None:
    """For the other worker, or without end."""
    worker, other, endless = map(os.environ.get, ("WORKER", "OTHER", "ENDLESS"))
    while (other and not begun(other)) or (worker and endless and begun(worker) == int(endless)):
        time.sleep(0.05)


def loss(alpha: float, seed: int, step: int) -> float:
    return (alpha - 5) ** 2 / 10 + seed / 100 + 1 / step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--neftune_noise_alpha", type=float, default=0.0)
    parser.add_argument("--neftune_noise_type")
    parser.add_argument("--neftune_noise_length")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--more")
    options = parser.parse_args()
    about = {**vars(options), "pid": os.getpid()}
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    tell("begin", **about, child=child.pid)
    if options.neftune_noise_alpha == BROKEN:
        child.kill()
        sys.exit("13 brings bad luck")
    wait()
    for step in range(1, STEPS + 1):
        time.sleep(float(os.environ.get("SECONDS", "0")) / STEPS)
        value = loss(options.neftune_noise_alpha, options.seed, step)
        curve.record(step, {"loss": value + options.neftune_noise_alpha, "eval_loss": value})
    os.mkdir(options.output_dir)
    with open(f"{options.output_dir}/weights", "w") as file:
        file.write("x" * int(options.neftune_noise_alpha))
    child.kill()
    tell("end", **about)


if __name__ == "__main__":
    main()
