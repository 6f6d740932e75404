"""Kill `dvc repro` at random moments, run it again, and compare what it made with an undisturbed run.

python -m benchmarks.kills --runs 30
python -m benchmarks.kills --runs 30 --processes 2
python -m benchmarks.kills --runs 10 --clock      # a clock that jumps by days; needs faketime
"""

import argparse
import random
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import killpg
from pathlib import Path
from typing import Any

import psutil

from benchmarks.clone import clone_to, dvc, output_digests

CHECKPOINT_MINUTES = 0.02
SMALL = {
    "compute": {"device": "cpu", "threads": 1, "checkpoint_minutes": CHECKPOINT_MINUTES},
    "prepare": {"count": 700, "resolution": 32, "holdout": 100},
    "glo": {"latent_dim": 16, "decoder": {"width": 16}, "epochs": 12, "batch_size": 16},
    "imle": {"noise_dim": 8, "mapping": {"width": 64, "depth": 2}, "epochs": 60},
    "sample": {"count": 64},
    "evaluate": {"features": "pixels", "count": 400, "mixture_components": 4},
}
MOST_SECONDS = 900


@dataclass
class Outcome:
    """What became of a run that was killed.

    Attributes
    ----------
    same
        Whether all digests were those of the undisturbed run.
    lost
        Seconds by which all attempts together took longer than that.
    kills
        Whom the signal hit, where, and after how many seconds.
    said
        What DVC said where the last attempt failed.
    """

    same: bool
    lost: float
    kills: list[str]
    said: str


def run(folder: Path, **options: Any) -> tuple[float, int, str]:
    """Run `dvc repro` to its end: seconds, exit status, what it said."""
    start = time.monotonic()
    with dvc(folder, "repro", **options) as process:
        out, err = process.communicate(timeout=MOST_SECONDS)
    return time.monotonic() - start, process.returncode, out + err


def kill_and_repeat(folder: Path, expected: dict[str, str], whole: float, seed: int, clock: bool) -> Outcome:
    """Start `dvc repro`, kill it once or twice, and run it to the end.

    Parameters
    ----------
    folder
        A fresh project; is used up.
    expected
        Digests of the undisturbed run.
    whole
        Seconds that it took.
    seed
        Decides the moments and the victims.
    clock
        Whether the clock jumps by days between the attempts.
    """
    draws = random.Random(seed)
    spent, kills = 0.0, []
    for _ in range(draws.choice([1, 1, 2])):
        moment = draws.uniform(0.02, 1.0) * whole
        with dvc(folder, "repro", env=_clock(draws) if clock else {}) as process:
            start = time.monotonic()
            with _reader(process):
                try:
                    process.wait(moment)
                except subprocess.TimeoutExpired:
                    kills.append(f"{_kill(process, draws)} after {moment:.1f} s")
            spent += time.monotonic() - start
    seconds, status, said = run(folder, env=_clock(draws) if clock else {})
    if status and "Unable to read RWLock-file" in said:  # what to do then is in docs/robustness.md
        kills.append("while DVC wrote its locks")
        (folder / ".dvc/tmp/rwlock").unlink()
        more, status, said = run(folder, env=_clock(draws) if clock else {})
        seconds += more
    same = status == 0 and output_digests(folder) == expected
    return Outcome(same, spent + seconds - whole, kills, "" if same else said)


@contextmanager
def _reader(process: "subprocess.Popen[str]") -> Iterator[None]:
    """Take what a process says, so that it never waits for a reader."""
    with ThreadPoolExecutor(2) as threads:
        reading = [threads.submit(stream.read) for stream in (process.stdout, process.stderr) if stream]
        yield
        for read in reading:
            read.result()


def _kill(process: "subprocess.Popen[str]", draws: random.Random) -> str:
    """SIGKILL everything, DVC alone, or one of its descendants alone; wait until all are gone."""
    children = psutil.Process(process.pid).children(recursive=True)
    victim = draws.choice(["all", "all", "dvc", "a stage's process"])
    if victim == "all" or (victim != "dvc" and not children):
        victim = "all"
        killpg(process.pid, signal.SIGKILL)
    elif victim == "dvc":
        process.kill()
    else:
        chosen = draws.choice(children)
        with suppress(psutil.NoSuchProcess):  # it may have ended by itself
            victim = " ".join(chosen.cmdline()[1:3]) or victim
            chosen.kill()
    process.wait()
    psutil.wait_procs(children, timeout=60)  # what DVC leaves behind ends by itself
    return victim


def _clock(draws: random.Random) -> dict[str, str]:
    """Return variables that shift the clock of a process by up to ten days (libfaketime)."""
    found = next(Path("/usr/lib").rglob("libfaketime.so.1"), None)
    if found is None:
        raise SystemExit("--clock needs libfaketime (Debian: apt install faketime)")
    return {
        "LD_PRELOAD": str(found),
        "FAKETIME": f"{draws.uniform(-10, 10):+.5f}d",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def main() -> None:
    """Print a line per run, and the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--processes", type=int, default=1, help="of the training stages")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--clock", action="store_true", help="let the clock jump between attempts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    settings = SMALL | {"compute": SMALL["compute"] | {"processes": options.processes}}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as threads:
        fresh = clone_to(Path(folder) / "fresh", settings)

        def copy(name: str) -> Path:
            return Path(shutil.copytree(fresh, Path(folder) / name, symlinks=True))

        # As many at once as later, so that times can be compared.
        wholes = [threads.submit(run, copy(f"whole {i}")) for i in range(options.jobs)]
        for whole in wholes:
            assert whole.result()[1] == 0, whole.result()[2]
        seconds = statistics.mean(whole.result()[0] for whole in wholes)
        expected = output_digests(Path(folder) / "whole 0")
        again = run(Path(folder) / "whole 0")[0]
        print(f"undisturbed: {seconds:.1f} s; with nothing to do: {again:.1f} s", flush=True)

        def one(i: int) -> Outcome:
            project = copy(str(i))
            outcome = kill_and_repeat(project, expected, seconds, options.seed + i, options.clock)
            shutil.rmtree(project)
            print(
                f"{i}: {'same' if outcome.same else 'DIFFERENT'}, {outcome.lost:.1f} s lost; killed: "
                f"{', '.join(outcome.kills) or 'nothing'}{outcome.said}",
                flush=True,
            )
            return outcome

        outcomes = [*threads.map(one, range(options.runs))]
    lost = [outcome.lost for outcome in outcomes if outcome.kills]
    same = sum(outcome.same for outcome in outcomes)
    print(
        f"{same} of {len(outcomes)} as if undisturbed, {len(lost)} of them killed; lost with starting again:"
    )
    print(f"median {statistics.median(lost):.1f} s, worst {max(lost):.1f} s")
    if not all(outcome.same for outcome in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
