"""Twenty users of the demo at once, a tenth of whose requests is bad; writes what came of it as JSON.

    OMP_NUM_THREADS=1 python benchmarks/demo_load.py --output docs/results/demo-load.json

Needs Linux, a checkout (users and requests are those of tests/demo) and the `demo` and `train` extras. The demo
is a process of its own with a next-pixel and a masked model of 8x8 pixels. Every good request brings
its own image and seed, and what is drawn is compared with what the library draws for them. The exit status is 1 if an
answer is wrong, a bad request gets no message, the server's memory grows, or a file that nobody uploaded can be read.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path


sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / folder) for folder in ("demo", ".")]

from browser import running_demo  # noqa: E402
from load_harness import GROWTH_LIMIT, Load, plan, try_to_read  # noqa: E402
from tiny_demo import marked, png, write_checkpoint  # noqa: E402
from visitor import Visitor  # noqa: E402

from hf_igpt.commands.demo import DemoArguments, open_checkpoint  # noqa: E402
from hf_igpt.results import print_results, write_results  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="outputs/demo-load.json", help="JSON file to write")
    parser.add_argument("--users", type=int, default=20, help="users at once")
    parser.add_argument("--requests", type=int, default=200, help="requests of all users together; a tenth is bad")
    parser.add_argument("--seed", type=int, default=0, help="seed of images, rows and the order of requests")
    arguments = parser.parse_args()
    started, quarter = time.perf_counter(), max(1, arguments.requests // 4)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        names = [str(write_checkpoint(folder / kind, kind, 8).relative_to(folder)) for kind in ("causal", "masked")]
        checkpoints = {name: open_checkpoint(str(folder / name), "cpu") for name in names}
        requests = plan(checkpoints, arguments.requests, arguments.requests // 10, arguments.seed)
        outside = folder / "outside.png"
        outside.write_bytes(png(marked(0)))
        with running_demo(folder, "--model", *names) as demo:
            load = Load(demo.url, demo.process.pid, outside, quarter)
            load.run(requests, arguments.users)
            files = [outside, folder / names[0] / "config.json", Path("/etc/passwd")]
            ways = try_to_read(Visitor(demo.url), names[0], files)
            wrong = load.wrong() + ([] if demo.is_alive() else ["the demo ended or raised an error"])
            wrong += [f"memory grew by {load.growth() / 1e6:.0f} MB"] if load.growth() > GROWTH_LIMIT else []
            wrong += [name for name in ("files_read", "server_errors") if ways[name]]
            # Before the demo is stopped, lest a stop that fails takes the results along.
            results = write_results(
                arguments.output,
                metrics=load.metrics() | ways | {"max_waiting": DemoArguments().max_waiting, "wrong": wrong},
                seeds={"seed": arguments.seed},
                arguments=vars(arguments),
                wall_seconds=round(time.perf_counter() - started, 1),
            )
    print_results(results)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
