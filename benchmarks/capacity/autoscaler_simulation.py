"""The autoscaler and the data feed with 64 and 256 GPU workers: a discrete-event simulation, the same for a seed.

    python -m benchmarks.capacity.autoscaler_simulation [--workers 64 256] [--plot FILE] [key=value ...]

A cluster grows by Ray's rule towards the nodes that a job asks for. First `TokenBuild` makes the tokens: readers on the
CPUs of each node feed its encoders through an object store, and wait while that is full. Then `ElasticTraining` trains
the generators as nvg/training/ray_train.py does: it starts with min_workers, looks every cluster.resize_interval
seconds whether there are more, and goes on from the newest checkpoint when its group starts anew. The seconds of a
step, of a checkpoint and of a restart are those of benchmarks/capacity/training_cost.py. Prints the tables of
docs/reports/training_cost.md and draws the workers over time. No cluster was run for it.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

from benchmarks.capacity import training_cost as cost
from benchmarks.capacity.counts import Counts, encoding_flops, generator_counts
from benchmarks.capacity.training_cost import Assumptions, assumed
from nvg import config as configuration
from nvg.config import Config

INITIAL_NODES = 5  # that may be on their way, however few there are: Ray's AUTOSCALER_UPSCALING_INITIAL_NUM_NODES
Process = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Scenario:
    """The assumptions on the cluster, in addition to those of benchmarks/capacity/training_cost.py."""

    upscaling_speed: float = assumed(1.0, "nodes on their way at most, over those that run: Ray's default")
    autoscaler_s: float = assumed(5.0, "between two looks of the autoscaler: Ray's default")
    idle_timeout_s: float = assumed(300.0, "until a node without work goes: Ray's default")
    boot_s: float = assumed(240.0, "median from request to a node that has joined: assumed")
    boot_spread: float = assumed(0.4, "standard deviation of its logarithm: assumed")
    zone_share: float = assumed(0.75, "of the spot nodes wanted that the zone has at first: assumed")
    return_s: float = assumed(1800.0, "mean until the zone has a spot node that it lacked or took: assumed")
    store_gb: float = assumed(20.0, "object store of a node that images may fill: assumed")
    min_workers: int = assumed(8, "with which training starts: one node")


@dataclass(eq=False)
class Node:
    """A node that has joined."""

    gone: simpy.Event
    noticed: bool = False


class Cluster:
    """Nodes, and the autoscaler that asks for `demand` of them."""

    def __init__(
        self, env: simpy.Environment, demand: int, spot: bool, a: Assumptions, scenario: Scenario, seed: int
    ) -> None:
        self.env, self.demand, self.spot, self.a, self.scenario = env, demand, spot, a, scenario
        self.random = np.random.default_rng(seed)
        self.nodes: list[Node] = []
        self.pending = 0
        self.change = env.event()  # replaced by a new one each time
        self.closed = env.event()
        self.gpu_seconds = 0.0  # paid, from the request on
        self.booting = 0.0  # of them before a node has joined
        self.preempted = 0
        self.history = [(0.0, 0)]  # seconds, nodes
        self.free = math.floor(demand * scenario.zone_share) if spot else demand  # nodes that the zone still has
        for _ in range(demand - self.free):
            env.process(self._returns())
        env.process(self._autoscaler())

    def changed(self) -> None:
        """Wake whoever waits for a node that comes, gets its notice or goes."""
        self.history.append((self.env.now, len(self.nodes)))
        self.change.succeed()
        self.change = self.env.event()

    def _autoscaler(self) -> Process:
        while True:
            missing = self.demand - len(self.nodes) - self.pending
            room = max(INITIAL_NODES, int(self.scenario.upscaling_speed * len(self.nodes))) - self.pending
            for _ in range(min(missing, room, self.free)):
                self.free -= 1
                self.pending += 1
                self.env.process(self._node())
            yield self.env.timeout(self.scenario.autoscaler_s)

    def _node(self) -> Process:
        """A node from its request to its end."""
        env, scenario, asked = self.env, self.scenario, self.env.now
        boot = scenario.boot_s * math.exp(self.random.normal(0.0, scenario.boot_spread))
        life = self.random.exponential(3600 / self.a.preemptions) if self.spot and self.a.preemptions else math.inf
        yield env.timeout(boot)
        self.pending -= 1
        node = Node(env.event())
        self.nodes.append(node)
        self.changed()
        joined = env.now
        if life < math.inf:
            yield env.timeout(life) | self.closed
            if not self.closed.triggered:
                node.noticed = True
                self.changed()
                yield env.timeout(self.a.notice_s) | self.closed
        else:
            yield self.closed
        self.gpu_seconds += (env.now - asked) * self.a.gpus_per_node
        self.booting += (joined - asked) * self.a.gpus_per_node
        if not self.closed.triggered:
            self.preempted += 1
            self.nodes.remove(node)
            node.gone.succeed()
            self.changed()
            yield from self._returns()

    def _returns(self) -> Process:
        yield self.env.timeout(self.random.exponential(self.scenario.return_s))
        self.free += 1

    def close(self) -> Process:
        """The jobs are done: nodes go once they have been idle for idle_timeout_s."""
        self.demand = 0
        yield self.env.timeout(self.scenario.idle_timeout_s)
        self.closed.succeed()
        yield self.env.timeout(0)  # nodes write their bills


class TokenBuild:
    """pipelines/build_tokens.py: pieces of images are read, wait in the object store, and are encoded on any node."""

    def __init__(
        self,
        env: simpy.Environment,
        cluster: Cluster,
        pieces: int,
        *,
        reading: float,
        encoding: float,
        readers: int,
        encoders: int,
        store: int,
    ) -> None:
        """reading, encoding: seconds a piece. readers, encoders: of a node. store: pieces, of all nodes."""
        self.env, self.cluster, self.pieces = env, cluster, pieces
        self.reading, self.encoding, self.readers, self.encoders = reading, encoding, readers, encoders
        self.todo = simpy.Store(env)
        self.todo.items = list(range(pieces))
        self.ready = simpy.Store(env, store)  # (piece, the node in whose memory it is)
        self.done: list[int] = []
        self.finished = env.event()
        self.most_ready = 0

    def run(self) -> Process:
        """Until all pieces are done, on the nodes that come and go."""
        seen: set[Node] = set()
        while not self.finished.triggered:
            for node in self.cluster.nodes:
                if node not in seen:
                    seen.add(node)
                    self.env.process(self._on(node))
            yield self.cluster.change | self.finished

    def _on(self, node: Node) -> Process:
        """The readers and encoders of a node. What a lost node had is read again by others."""
        held: set[int] = set()  # pieces in the hands of this node's tasks
        tasks = [self._read(node, held) for _ in range(self.readers)]
        tasks += [self._encode(held) for _ in range(self.encoders)]
        processes = [self.env.process(task) for task in tasks]
        yield node.gone | self.finished
        for process in processes:
            process.interrupt()
        stored = {piece for piece, home in self.ready.items if home is node}
        self.ready.items = [item for item in self.ready.items if item[1] is not node]
        for piece in sorted(held | stored):
            self.todo.put(piece)

    def _read(self, node: Node, held: set[int]) -> Process:
        request: Any = None
        try:
            while True:
                request = self.todo.get()
                piece = yield request
                held.add(piece)
                yield self.env.timeout(self.reading)
                request = self.ready.put((piece, node))
                yield request  # waits while the store is full
                held.remove(piece)
                self.most_ready = max(self.most_ready, len(self.ready.items))
        except simpy.Interrupt:
            self._give_back(request)

    def _encode(self, held: set[int]) -> Process:
        request: Any = None
        try:
            while True:
                request = self.ready.get()
                piece, _ = yield request
                held.add(piece)
                yield self.env.timeout(self.encoding)
                held.remove(piece)
                self.done.append(piece)
                if len(self.done) == self.pieces:
                    self.finished.succeed()
        except simpy.Interrupt:
            self._give_back(request)

    def _give_back(self, request: Any) -> None:
        """A task ends: it waits for nothing more, and leaves what it was given at this very moment."""
        if not request.triggered:
            request.cancel()
        elif not request.processed and request.value is not None:  # of a get
            piece = request.value[0] if isinstance(request.value, tuple) else request.value
            self.todo.put(piece)


@dataclass
class ElasticTraining:
    """pipelines/train.py with cluster.min_workers. Steps are counted as they are done; a new group begins again at the
    newest checkpoint, and what was done since is lost."""

    env: simpy.Environment
    cluster: Cluster
    config: Config
    counts: Counts
    workers: int
    a: Assumptions
    kept: float = 0.0  # steps in the newest checkpoint
    lost: float = 0.0  # steps that were done in vain
    resizes: int = 0  # new groups because there were more or fewer workers
    failures: int = 0  # because a node was gone
    history: list[tuple[float, int]] = field(default_factory=lambda: [(0.0, 0)])  # seconds, workers
    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # GPU seconds of groups, by use

    def __post_init__(self) -> None:
        self.every = self.config.train.checkpoint_every
        self.steps_per_epoch = self.a.images // self.config.train.batch_size
        self.steps = self.on(self.workers).steps

    def on(self, workers: int) -> cost.Training:
        """The training on a number of workers, who share the slices of num_workers."""
        train = self.config.train
        reading = cost.token_reading_seconds(self.counts, train.batch_size, workers, self.a)
        return cost.training(self.counts, train, workers, reading, self.a, self.workers * train.accumulate)

    def available(self) -> int:
        """Workers for which there is room. Ray Train counts nodes that were announced to leave, too."""
        return min(self.workers, len(self.cluster.nodes) * self.a.gpus_per_node)

    def run(self, least: int) -> Process:
        """Train to the last step, with at least `least` workers at any time."""
        while self.kept < self.steps:
            while self.available() < least:
                yield self.cluster.change
            group = self.cluster.nodes[: math.ceil(self.available() / self.a.gpus_per_node)]
            one = self.on(self.available())
            if (yield from self._start(group, one)):
                self.history.append((self.env.now, one.gpus))
                yield from self._train(group, one)
                self.history.append((self.env.now, 0))

    def _start(self, group: list[Node], one: cost.Training) -> Generator[simpy.Event, Any, bool]:
        """Whether the group came to its first step."""
        start = self.env.now
        seconds = cost.restart_seconds(self.counts, self.kept % self.steps_per_epoch, one.step.reading, self.a)
        ready = self.env.timeout(seconds)
        while not ready.processed and not self._broken(group):
            yield ready | self.cluster.change
        self.spent["restarts"] += (self.env.now - start) * one.gpus
        self.failures += self._broken(group)
        return not self._broken(group)

    def _train(self, group: list[Node], one: cost.Training) -> Process:
        """Until the last step, a lost node, or a look at which there are more or fewer workers."""
        pace, done = one.step.total + one.checkpoint, self.kept
        warned = {node for node in group if node.noticed}
        look = self.env.now + self.config.cluster.resize_interval
        while True:
            start = self.env.now
            ends = start + (self.steps - done) * pace
            yield self.env.timeout(min(ends, look) - start) | self.cluster.change
            done = self.steps if self.env.now >= ends else done + (self.env.now - start) / pace
            written = done - cost.checkpoint_seconds(self.counts, self.a) / pace  # a thread writes while it trains
            self._keep(done if done == self.steps else written // self.every * self.every, one)
            if done == self.steps:
                return
            if self._broken(group):
                self.failures += 1
                break
            if {node for node in group if node.noticed} - warned:  # a checkpoint at once (nvg/training/loop.py)
                warned = {node for node in group if node.noticed}
                self._keep(done, one)
                noticed = self.env.now  # this one is written before the training goes on
                yield self.env.timeout(cost.checkpoint_seconds(self.counts, self.a))
                self.spent["checkpoints"] += (self.env.now - noticed) * one.gpus
                if self._broken(group):
                    self.failures += 1
                    break
            if self.env.now >= look:
                look = self.env.now + self.config.cluster.resize_interval
                if self.available() != one.gpus:
                    self.resizes += 1
                    break
        self.lost += done - self.kept
        self.spent["lost work"] += (done - self.kept) * pace * one.gpus

    def _broken(self, group: list[Node]) -> bool:
        return any(node.gone.triggered for node in group)

    def _keep(self, done: float, one: cost.Training) -> None:
        """The steps up to `done` are in a checkpoint: book what they took."""
        steps = done - self.kept
        if steps <= 0:
            return
        s = one.step
        computing = cost.compute_seconds(self.counts, one.batch, self.a)  # of all workers together
        waiting = max(0.0, s.reading - s.busy - s.exposed) * one.gpus
        self.spent["computing"] += steps * computing
        self.spent["waiting for data"] += steps * waiting
        self.spent["checkpoints"] += steps * one.checkpoint * one.gpus
        self.spent["all-reduce, launches, update"] += steps * (s.total * one.gpus - waiting - computing)
        self.kept = done


@dataclass(frozen=True)
class Outcome:
    """The result of a simulation. GPU seconds by use add up to those paid."""

    name: str
    all_workers: float  # seconds until the training had them, or inf
    token_seconds: float
    store_filled: float  # share of the object store, at most
    seconds: float  # until the training's end
    training: ElasticTraining
    cluster: Cluster
    shares: dict[str, float]

    def cells(self) -> list[str]:
        t, c = self.training, self.cluster
        trained = self.seconds - self.token_seconds
        price = c.a.spot_price if c.spot else c.a.price
        return [
            self.name,
            f"{self.all_workers / 60:.0f}" if self.all_workers < math.inf else "never",
            f"{self.token_seconds / 60:.1f}",
            f"{self.store_filled:.0%}",
            f"{self.seconds / 3600:.1f}",
            f"{t.steps * t.config.train.batch_size / trained * 3.6e-3:.1f}",
            f"{self.shares['computing']:.0%}",
            f"{self.shares['waiting for data']:.0%}",
            f"{t.resizes} + {t.failures}",
            f"{t.lost / t.steps:.1%}",
            f"{c.gpu_seconds / 3600:,.0f}",
            f"{c.gpu_seconds / 3600 * price:,.0f}",
        ]


COLUMNS = (
    "run | minutes to all workers | minutes of tokens | store filled | hours | million images an hour | "
    "GPU time that computes | that waits for data | new groups: resized + lost | steps lost | GPU hours | $"
)
USES = (
    "computing",
    "all-reduce, launches, update",
    "waiting for data",
    "checkpoints",
    "restarts",
    "lost work",
    "booting",
    "other",
)


def simulate(
    name: str,
    config: Config,
    counts: Counts,
    encoding: float,
    workers: int,
    spot: bool,
    a: Assumptions,
    scenario: Scenario,
    seed: int,
) -> Outcome:
    """Tokens, then the training. encoding: seconds of a GPU an image."""
    env, data = simpy.Environment(), config.data
    cluster = Cluster(env, math.ceil(workers / a.gpus_per_node), spot, a, scenario, seed)
    build = TokenBuild(
        env,
        cluster,
        math.ceil(a.images / data.unit_images) * data.views,
        reading=data.unit_images * a.decode_ms * 1e-3,
        encoding=data.unit_images * encoding,
        readers=int(cost.readers_per_gpu(config.cluster.cpus_per_worker, a) * a.gpus_per_node),
        encoders=a.gpus_per_node,
        store=int(cluster.demand * scenario.store_gb * 1e9 / (data.unit_images * data.image_size**2 * data.channels)),
    )
    env.run(env.process(build.run()))
    token_seconds = env.now
    training = ElasticTraining(env, cluster, config, counts, workers, a)
    env.run(env.process(training.run(scenario.min_workers)))
    seconds = env.now
    env.run(env.process(cluster.close()))
    spent = {**training.spent, "booting": cluster.booting}
    spent["other"] = cluster.gpu_seconds - sum(spent.values())  # tokens, nodes that wait for a look, idle ones
    shares = {use: spent.get(use, 0.0) / cluster.gpu_seconds for use in USES}
    full = next((at for at, count in training.history if count == workers), math.inf)
    filled = build.most_ready / build.ready.capacity
    return Outcome(name, full, token_seconds, filled, seconds, training, cluster, shares)


def runs(
    path: str, workers: list[int], settings: list[str], a: Assumptions, scenario: Scenario, seed: int
) -> list[Outcome]:
    """On demand and on spot nodes with plain tokens, and on spot nodes with alignment features, by workers."""
    outcomes = []
    for tokens, spot in (("plain", False), ("plain", True), ("aligned", True)):
        every = [*(["repa.weights=null"] if tokens == "plain" else []), *settings]
        counts = generator_counts(path, *every)
        encoding = cost.encoding_seconds(*encoding_flops(path, *every), a)
        for count in workers:
            config = configuration.load(path, [*every, f"cluster.num_workers={count}"])
            name = f"{count}, {'spot' if spot else 'on demand'}, {tokens}"
            outcomes.append(simulate(name, config, counts, encoding, count, spot, a, scenario, seed))
    return outcomes


def report(outcomes: list[Outcome], scenario: Scenario) -> str:
    """All tables."""
    shares = [[outcome.name, *(f"{value:.1%}" for value in outcome.shares.values())] for outcome in outcomes]
    return "\n\n".join(
        [
            cost.assumptions_table(scenario),
            cost.table(COLUMNS, [outcome.cells() for outcome in outcomes]),
            cost.table(" | ".join(["GPU time", *USES]), shares),
        ]
    )


def draw(outcomes: list[Outcome], path: str) -> None:
    """Workers over time: the first hour, and all of it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.6 * len(outcomes)), layout="constrained")
    axes = figure.subplots(len(outcomes), 2, squeeze=False, sharey="row")
    for row, outcome in zip(axes, outcomes, strict=True):
        for axis, last in zip(row, (1.0, outcome.seconds / 3600), strict=True):
            gpus = outcome.cluster.a.gpus_per_node
            for history, scale, label, colour in (
                (outcome.cluster.history, gpus, "GPUs of nodes that have joined", "#9aa7b5"),
                (outcome.training.history, 1, "workers that train", "#c4532d"),
            ):
                end = [(outcome.seconds, history[-1][1])]
                times, counts = zip(*(history + end), strict=True)
                hours, values = [time / 3600 for time in times], [count * scale for count in counts]
                axis.step(hours, values, where="post", label=label, color=colour, linewidth=1.4)
            built = outcome.token_seconds / 3600
            axis.axvline(built, color="#444444", linestyle=":", linewidth=1.2, label="tokens are built")
            axis.set_xlim(0, last)
            axis.set_ylim(0, outcome.training.workers * 1.08)
            axis.set_title(f"{outcome.name}, {'the first hour' if last == 1 else 'all of it'}", fontsize=10)
            axis.grid(alpha=0.25)
    for axis in axes[-1]:
        axis.set_xlabel("hours")
    for axis in axes[:, 0]:
        axis.set_ylabel("GPUs")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="of the configuration")
    parser.add_argument("--config", default="conf/imagenet_d16.yaml")
    parser.add_argument("--workers", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", metavar="FILE", help="draw the spot runs with plain tokens")
    cost.add_assumptions(parser, Assumptions())
    cost.add_assumptions(parser, Scenario())
    arguments = parser.parse_args()
    a, scenario = (cost.from_arguments(kind, arguments) for kind in (Assumptions, Scenario))
    outcomes = runs(arguments.config, arguments.workers, arguments.settings, a, scenario, arguments.seed)
    print(report(outcomes, scenario))
    if arguments.plot:
        draw([outcome for outcome in outcomes if "spot, plain" in outcome.name], arguments.plot)


if __name__ == "__main__":
    main()
