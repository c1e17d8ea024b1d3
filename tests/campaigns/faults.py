"""Kill parts of a run at random moments, let it go on, and compare what it makes with an undisturbed run's.

    python -m tests.campaigns.faults [--rounds 20] [--seed 0] [--work /tmp/nvg-faults]

A round takes a step of pipelines/run.py, a victim and a moment. 20 rounds are every pair of step and victim once; the
seed draws their order and the moments. The run is the command that a user types, on drawn images, with a Ray of its
own; the steps before are taken from the undisturbed run. At the moment the victim gets SIGKILL:

    data      a Ray Data process: a tokenizer or measuring actor, or a reading or writing task
    worker    a Ray Train worker
    driver    the process of run.py, alone
    raylet    the raylet of the only node, and so all that runs on it
    all       the driver and the whole Ray at once: a machine that loses power

The moment is a share of the step's undisturbed duration, or `end`: as soon as metadata.json is there, when the result
is whole and the job is not. Where the job did not survive, the same command is given again. Then everything must be as
in the undisturbed run: the bytes of every token part and of all weights, the points of all curves, one MLflow run a
job, the figures of the evaluation; a training must have gone on from its newest checkpoint; no lease, checkpoint or
temporary file may be left. While it runs, a reader opens whatever can be seen, as others would: what is half written
fails the round. Ends with exit code 1 where a round failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import psutil
from safetensors import safe_open

from nvg import config as configuration
from nvg import tracking
from nvg.artifacts.lease import left_over
from nvg.data.tokens import read_part
from pipelines import steps
from tests.support.synthetic import write_images

ROOT = Path(__file__).parents[2]
STEPS = tuple(steps.STEPS)
VICTIMS = {step: ("worker", "driver", "raylet", "all") for step in STEPS} | {
    step: ("data", "driver", "raylet", "all") for step in ("tokens", "evaluation")
}
NAMES = {  # of the processes of a victim, as Ray sets them
    "data": ("ray::MapWorker", "ray::Map", "ray::FlatMap"),
    "worker": ("ray::RayTrainWorker", "ray::_RayTrainWorker"),
    "raylet": ("raylet/raylet",),
}
TRIES = 3  # of the command, after the kill
PATIENCE = 300  # seconds of one try


@dataclass
class Round:
    """What is killed, and what came of it."""

    step: str
    victim: str
    moment: float  # of the step's undisturbed duration; 1: as soon as its metadata.json is there
    killed: list[str] = field(default_factory=list)
    commands: int = 0
    faults: list[str] = field(default_factory=list)


class Run:
    """The command with some settings, and its artifacts."""

    def __init__(self, *settings: str) -> None:
        self.arguments = ["--config", str(ROOT / "conf" / "smoke.yaml"), *settings]
        self.config = configuration.load(self.arguments[1], self.arguments[2:])
        self.output = Path(self.config.output)
        self.artifacts = {step: Path(item.folder) for step, item in steps.plan(self.config).items()}

    def start(self, step: str) -> subprocess.Popen:
        """Begin the command, up to a step, in a session of its own."""
        with open(self.output.with_suffix(".log"), "ab") as log:
            command = [sys.executable, "pipelines/run.py", *self.arguments, "--until", step]
            environment = {**os.environ, "RAY_ADDRESS": ""}
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)

    def started(self, step: str) -> bool:
        """Whether a step is at work: it holds the lease of its artifact."""
        return left_over(str(self.artifacts[step]))

    def whole(self, step: str) -> bool:
        """Whether a step is done."""
        return (self.artifacts[step] / "metadata.json").exists()

    def checkpoint(self, step: str) -> int:
        """The step of the newest checkpoint of a training, 0 where there is none."""
        names = [path.parent.name for path in self.artifacts[step].glob("checkpoints*/step-*/metadata.json")]
        return max((int(name.removeprefix("step-")) for name in names), default=0)

    def result(self, step: str) -> dict[str, object]:
        """What must be equal: bytes of parts and weights, figures, curves and the number of runs of a job."""
        folder = self.artifacts[step]
        found: dict[str, object] = {
            path.name: path.read_bytes() for pattern in ("part-*", "*.safetensors") for path in folder.glob(pattern)
        }
        if step == "evaluation":
            found["figures"] = json.loads((folder / "evaluation.json").read_text())["figures"]
        if step == "tokens":
            about = json.loads((folder / "metadata.json").read_text())
            found["counts"] = [about[name] for name in ("images", "rows", "parts", "quarantined")]
        else:
            found["curves"] = self.curves(folder)
        return found

    def curves(self, folder: Path) -> object:
        """Status and loss points of the runs that made a folder."""
        from mlflow import MlflowClient

        client = MlflowClient(tracking.tracking_uri(self.config))
        experiments = [item.experiment_id for item in client.search_experiments()]
        runs = client.search_runs(experiments, f"tags.artifact = '{folder}'")
        return [
            (run.info.status, [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, "loss")])
            for run in runs
        ]

    def litter(self) -> list[str]:
        """Files that no finished job leaves."""
        names = ("*.lease", ".*.tmp*", "checkpoints*", "ray_train", ".*.old")
        return [str(path.relative_to(self.output)) for name in names for path in self.output.rglob(name)]


class Reader(threading.Thread):
    """Opens what can be seen under a folder, over and over, and notes what is half there."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.done, self.seen = folder, threading.Event(), 0
        self.faults: set[str] = set()

    def run(self) -> None:
        """Until `done`."""
        known: set[tuple[str, int]] = set()
        while not self.done.wait(0.2):
            paths: list[Path] = []
            with contextlib.suppress(FileNotFoundError):  # a folder that vanished on the way: what came before it
                paths.extend(self.folder.rglob("*"))
            for path in paths:
                if any(part.startswith(".") or part == "ray_train" for part in path.relative_to(self.folder).parts):
                    continue  # temporary names, which no reader takes
                try:
                    mark = (str(path), path.stat().st_mtime_ns)
                    if mark in known or not path.is_file():
                        continue
                    self._open(path)
                    known.add(mark)
                    self.seen += 1
                except FileNotFoundError:
                    continue  # replaced or removed meanwhile
                except Exception as error:
                    if path.exists():
                        self.faults.add(f"{path.name}: {error}")

    def _open(self, path: Path) -> None:
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".parquet" and path.name.startswith("part-"):
            read_part(str(path))
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                for name in file.keys():
                    file.get_tensor(name)


def kill(round: Round, job: subprocess.Popen) -> None:
    """SIGKILL to the victim; nothing where it does not live at the moment."""
    family = [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]
    if round.victim == "driver":
        victims = family[:1]
    elif round.victim == "all":
        victims = family
    else:
        victims = []
        for process in family:
            with contextlib.suppress(psutil.Error):
                if any(name in " ".join(process.cmdline()) for name in NAMES[round.victim]):
                    victims.append(process)
        if round.victim in ("data", "worker"):
            victims = victims[:1]
    for process in victims:
        try:
            name = title(process)
            process.kill()
            round.killed.append(name)
        except psutil.NoSuchProcess:
            pass


def title(process: psutil.Process) -> str:
    """What a process is: `ray::MapWorker(Map(Encode))`, `raylet`, `run.py`."""
    words = process.cmdline()
    if words and words[0].startswith("ray::"):
        return words[0]
    return next((Path(word).name for word in words if word.endswith(".py")), process.name())


def end(pid: int) -> None:
    """What is left of a killed job's session: nothing may go on beside the next one."""
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == pid:
                process.kill()
        except (psutil.Error, ProcessLookupError):
            pass


def play(round: Round, run: Run, seconds: float, reference: dict[str, object]) -> None:
    """One round, on an output where the steps before are done."""
    reader = Reader(run.output)
    reader.start()
    job = run.start(round.step)
    limit = time.monotonic() + PATIENCE
    while job.poll() is None and not run.started(round.step) and time.monotonic() < limit:
        time.sleep(0.01)
    newest, finished = 0, False
    if round.moment < 1:
        time.sleep(round.moment * seconds)
    while job.poll() is None and not round.killed:
        if run.whole(round.step) == (round.moment == 1):
            newest = run.checkpoint(round.step)
            kill(round, job)
        elif round.moment < 1:
            break  # it is over
        time.sleep(0.01)
    for round.commands in range(1, TRIES + 1):
        try:
            code = job.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            code = None
        if code == 0:
            break
        time.sleep(1)  # the workers of a killed Ray see that it is gone
        end(job.pid)
        finished = finished or run.whole(round.step)  # whoever was not killed may still have done the work
        if round.commands < TRIES:
            job = run.start(round.step)
    else:
        round.faults.append(f"did not end well in {TRIES} commands")
    reader.done.set()
    reader.join()
    round.faults += sorted(reader.faults)
    if not reader.seen:
        round.faults.append("the reader saw nothing")
    if not round.killed:
        round.faults.append("nothing was killed: the moment was too late")
    if not run.whole(round.step):
        round.faults.append("no result")
        return
    training = json.loads((run.artifacts[round.step] / "metadata.json").read_text()).get("training")
    if training and round.moment < 1 and not finished and training["resumed_from"] < newest:
        round.faults.append(f"went on from step {training['resumed_from']}, and had a checkpoint of {newest}")
    found = run.result(round.step)
    names = reference.keys() | found.keys()
    round.faults += [f"{name} differs" for name in sorted(names) if reference.get(name) != found.get(name)]
    round.faults += [f"left over: {name}" for name in run.litter()]


def settings(work: Path) -> list[str]:
    """Of every run: several parts, all steps, checkpoints every 4 steps of 16."""
    return [
        f"data.train={work}/images",
        "data.unit_images=4",
        "data.views=2",
        "distill.steps=16",
        "distill.batch_size=16",
        "distill.checkpoint_every=4",
    ]


def undisturbed(work: Path) -> tuple[Run, dict[str, float]]:
    """The run that nothing disturbs, and the seconds of its steps."""
    write_images(work / "images")
    run = Run(f"output={work}/undisturbed", *settings(work))
    if run.start(STEPS[-1]).wait() != 0:
        raise SystemExit(f"error: the undisturbed run failed, see {run.output}.log")
    return run, {step: json.loads((run.artifacts[step] / "timing.json").read_text())["seconds"] for step in STEPS}


def copied(calm: Run, step: str, *settings: str) -> Run:
    """A run in an output of its own, made empty, in which the steps before are done."""
    run = Run(*settings)
    shutil.rmtree(run.output, ignore_errors=True)
    for before in STEPS[: STEPS.index(step)]:
        shutil.copytree(calm.artifacts[before], run.artifacts[before])
    run.output.mkdir(exist_ok=True)
    return run


def rounds(seed: int, count: int) -> list[Round]:
    """Every pair of a step and a victim in an order by chance, again where more are needed; moments by chance."""
    chance = random.Random(seed)
    result: list[Round] = []
    while len(result) < count:
        pairs = [(step, victim) for step in STEPS for victim in VICTIMS[step]]
        chance.shuffle(pairs)
        result += [Round(step, victim, moment(chance)) for step, victim in pairs]
    return result[:count]


def moment(chance: random.Random) -> float:
    """A share of the duration, below 0.9; one in seven is the end."""
    return 1.0 if chance.random() < 1 / 7 else round(0.9 * chance.random(), 2)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("/tmp/nvg-faults"))
    arguments = parser.parse_args()
    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    calm, seconds = undisturbed(arguments.work)
    results = {step: calm.result(step) for step in STEPS}
    took = ", ".join(f"{step} {value:.1f} s" for step, value in seconds.items())
    print(f"{date.today()}, seed {arguments.seed}; undisturbed: {took}\n")
    print("| round | step | victim | at | killed | commands | verdict |\n" + "| --- " * 7 + "|", flush=True)
    failed = 0
    for number, one in enumerate(rounds(arguments.seed, arguments.rounds), start=1):
        for _ in range(TRIES):
            one.faults = []
            output = arguments.work / f"round-{number:02d}"
            run = copied(calm, one.step, f"output={output}", *settings(arguments.work))
            play(one, run, seconds[one.step], results[one.step])
            if one.killed:
                break
            if one.moment < 1:
                one.moment /= 2  # it was over before
        failed += bool(one.faults)
        killed = one.killed[0] if len(one.killed) == 1 else f"{len(one.killed)} processes"
        verdict = "; ".join(one.faults) or "equal"
        at = f"{one.moment:.0%}" if one.moment < 1 else "end"
        print(f"| {number} | {one.step} | {one.victim} | {at} | {killed} | {one.commands} | {verdict} |", flush=True)
        if not one.faults:
            shutil.rmtree(run.output)
    print(f"\n{arguments.rounds - failed} of {arguments.rounds} rounds equal")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
