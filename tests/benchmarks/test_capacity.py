"""benchmarks/capacity: the cost of training term by term against values by hand; the laws of the simulation."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest
import simpy

from benchmarks.capacity import autoscaler_simulation as simulation
from benchmarks.capacity import counts as counting
from benchmarks.capacity import training_cost as cost
from benchmarks.capacity.autoscaler_simulation import Cluster, Node, Scenario, TokenBuild, simulate
from benchmarks.capacity.counts import Counts
from benchmarks.capacity.training_cost import Assumptions
from benchmarks.schedules import FORMS, operations
from nvg import config as configuration

PLAIN = "repa.weights=null"
DOC = Path(__file__).parents[2] / "docs" / "reports" / "training_cost.md"
# A machine whose figures are easy to reckon with: 312 TFLOP/s of which 0.4 are reached.
A = Assumptions(
    matmul_tflops=312,
    utilization=0.4,
    memory_gb_s=1300,
    nvlink_gb_s=230,
    network_gb_s=30,
    cpus_per_node=96,
    decode_ms=4.06,
)
COUNTS = Counts(flops=1.248e12, backward=0.75, ops=10_000, parameters=10**9, item_bytes=1000)
INFINITE = dataclasses.replace(
    A,
    network_gb_s=1e12,
    nvlink_gb_s=1e12,
    storage_gb_s=1e12,
    stream_rows_s=1e12,
    fetch_gb_s=1e12,
    request_ms=0.0,
    op_us=0.0,
    memory_gb_s=1e12,
    checkpoint_gb_s=1e12,
    host_gb_s=1e12,
    group_s=0.0,
)


def step(gpus, batch=768, counts=COUNTS, a=A, slices=None):
    reading = cost.token_reading_seconds(counts, batch, gpus, a)
    return cost.step(counts, batch, gpus, reading, a, slices)


# ---- the cost model ----


def test_compute_is_operations_over_what_a_gpu_does():
    assert cost.compute_seconds(COUNTS, 100, A) == pytest.approx(100 * 1.248e12 / 124.8e12)  # 312 x 0.4


def test_the_tokenizer_has_a_rate_of_its_own():
    counts = dataclasses.replace(COUNTS, convolutions=True)
    a = dataclasses.replace(A, tokenizer_tflops=100)
    assert cost.compute_seconds(counts, 100, a) == pytest.approx(1.248)


def test_tokens_take_the_encoder_clustering_and_features():
    a = dataclasses.replace(A, encoder_tflops=200, clustering_ms=0.5)
    assert cost.encoding_seconds(0.2e12, 0.0, a) == pytest.approx(1.5e-3)
    assert cost.encoding_seconds(0.2e12, 0.1248e12, a) == pytest.approx(2.5e-3)


def test_update_moves_48_bytes_a_parameter():
    assert cost.update_seconds(COUNTS, A) == pytest.approx(48 / 1300)  # 48 GB at 1,300 GB/s


def test_launches_are_operations_of_all_slices():
    assert cost.launch_seconds(COUNTS, 3, A) == pytest.approx(0.15)  # 30,000 x 5 us


def test_one_gpu_has_no_all_reduce_and_many_send_nearly_twice_the_gradients():
    assert cost.all_reduce_bytes(COUNTS, 1) == 0
    assert cost.all_reduce_bytes(COUNTS, 2) == 4e9
    assert cost.all_reduce_bytes(COUNTS, 8) == 7e9
    assert cost.all_reduce_bytes(COUNTS, 10**6) == pytest.approx(8e9, rel=1e-5)


def test_split_weights_are_gathered_twice_and_gradients_sent_once_in_bfloat16_every_slice():
    split = dataclasses.replace(COUNTS, split=True)
    assert cost.all_reduce_bytes(split, 1) == 0
    assert cost.all_reduce_bytes(split, 2) == 3e9
    assert cost.all_reduce_bytes(split, 8) == pytest.approx(5.25e9)
    slow = dataclasses.replace(A, nvlink_gb_s=1)
    one, two = (step(8, counts=split, a=slow, slices=slices) for slices in (8, 16))
    assert two.all_reduce == pytest.approx(2 * one.all_reduce) == pytest.approx(10.5)
    assert one.exposed == pytest.approx(5.25 - 0.8 * one.compute)  # both halves of the pass hide it


def test_all_reduce_goes_over_nvlink_in_a_node_and_over_the_network_beyond():
    assert cost.all_reduce_seconds(COUNTS, 8, A) == pytest.approx(7 / 230)
    assert cost.all_reduce_seconds(COUNTS, 16, A) == pytest.approx(7.5 / 30)


def test_the_backward_pass_hides_all_reduce_up_to_the_overlap():
    assert cost.exposed_seconds(0.5, 0.5, A) == pytest.approx(0.1)
    assert cost.exposed_seconds(0.1, 0.5, A) == 0


def test_every_worker_reads_every_token_row():
    assert cost.token_reading_seconds(COUNTS, 768, 8, A) == pytest.approx(768 / 51285)
    assert cost.token_reading_seconds(COUNTS, 768, 64, A) == pytest.approx(768 / 51285)  # no faster with more of them
    slow = dataclasses.replace(A, storage_gb_s=0.01)  # 8 workers of a node
    assert cost.token_reading_seconds(COUNTS, 768, 8, slow) == pytest.approx(768 * 8e3 / 1e7)


def test_a_worker_fetches_the_features_of_its_own_rows_alone():
    wide = dataclasses.replace(COUNTS, feature_bytes=10**6)
    slow = dataclasses.replace(A, fetch_gb_s=0.1)
    assert cost.token_reading_seconds(wide, 768, 8, slow) == pytest.approx(96 * 1e6 / 1e8)
    assert cost.token_reading_seconds(wide, 768, 64, slow) == pytest.approx(12 * 1e6 / 1e8)
    late = dataclasses.replace(A, request_ms=1000)  # 16 at once
    assert cost.token_reading_seconds(wide, 768, 8, late) == pytest.approx(6.0)
    narrow = dataclasses.replace(A, storage_gb_s=0.1)  # 8 workers: all tokens each, 96 rows' features each
    assert cost.token_reading_seconds(wide, 768, 64, narrow) == pytest.approx(8 * (768e3 + 12e6) / 1e8)


def test_reading_bounds_where_it_takes_as_long_as_compute():
    # 768 images are 7.68 s of compute, and 15 ms of the stream: 513 GPUs, so 65 nodes.
    assert cost.reading_bounds_from(COUNTS, 768, A) == 520
    heavy = dataclasses.replace(COUNTS, flops=1e15)
    assert cost.reading_bounds_from(heavy, 768, A) is None
    wide, slow = dataclasses.replace(COUNTS, feature_bytes=10**6), dataclasses.replace(A, fetch_gb_s=0.1)
    assert cost.reading_bounds_from(wide, 768, slow) == 8  # a row's features take as long as its compute on any number


def test_a_worker_reads_its_own_images_alone():
    # 32 images a worker, eight CPUs a GPU: 32 x 4.06 ms / 8
    images = dataclasses.replace(COUNTS, item_bytes=115_400)
    assert cost.image_reading_seconds(images, 256, 8, 4, A) == pytest.approx(32 * 4.06e-3 / 8)
    assert cost.image_reading_seconds(images, 256, 64, 4, A) == pytest.approx(4 * 4.06e-3 / 8)


def test_a_step_is_the_sum_of_what_does_not_overlap():
    one = step(8)
    assert one.compute == pytest.approx(0.96) and one.busy == pytest.approx(0.96 + 48 / 1300) and one.exposed == 0
    assert one.total == one.busy and one.bound == "compute"


@pytest.mark.parametrize(
    ("change", "bound"),
    [({"op_us": 500}, "launches"), ({"network_gb_s": 1}, "all-reduce"), ({"stream_rows_s": 10}, "reading")],
)
def test_the_bound_is_the_term_that_was_made_slow(change, bound):
    assert step(64, a=dataclasses.replace(A, **change)).bound == bound


def test_lost_workers_leave_their_slices_to_the_others():
    full, fewer, half = step(64), step(63, slices=64), step(32, slices=64)
    assert fewer.compute == half.compute == pytest.approx(2 * full.compute)


def test_checkpoint_and_restart():
    assert cost.checkpoint_seconds(COUNTS, A) == pytest.approx(16 / 0.3)
    assert cost.stopped_seconds(COUNTS, 60, A) == pytest.approx(16 / 25)  # written meanwhile
    assert cost.stopped_seconds(COUNTS, 50, A) == pytest.approx(16 / 25 + 16 / 0.3 - 50)
    assert cost.restart_seconds(COUNTS, 100, 0.5, A) == pytest.approx(8 + 16 / 0.3 + 50)


def trained(gpus, a=A):
    return cost.train_generators(configuration.load("conf/imagenet_d16.yaml"), COUNTS, gpus, a)


def test_steps_are_those_of_the_training():
    assert trained(8).steps == 200 * (1_281_167 // 768)


def test_infinite_bandwidth_leaves_the_hours_of_computing():
    for gpus in (8, 64, 768):
        one = trained(gpus, INFINITE)
        images = one.steps * 768
        assert one.hours == pytest.approx(images * COUNTS.flops / (124.8e12 * gpus) / 3600, rel=1e-6)


def test_more_gpus_take_no_more_time_and_no_fewer_gpu_hours():
    runs = [trained(gpus) for gpus in (8, 16, 32, 64, 128, 256)]
    hours = [run.hours for run in runs[1:]]  # from two nodes on: the first step out of a node costs bandwidth
    assert hours == sorted(hours, reverse=True)
    used = [run.hours * run.gpus for run in runs]
    assert used == sorted(used)


@pytest.mark.parametrize("field", ["network_gb_s", "storage_gb_s", "fetch_gb_s", "checkpoint_gb_s", "utilization"])
def test_a_faster_part_never_hurts(field):
    hours = [trained(64, dataclasses.replace(A, **{field: getattr(A, field) * times})).hours for times in (0.1, 1, 10)]
    assert hours == sorted(hours, reverse=True)


def test_tokens_wait_for_the_slower_of_encoders_and_readers():
    assert cost.token_hours(3600 * 8, 0.5, 4, 8, A) == pytest.approx(0.5)
    assert cost.token_hours(3600 * 8, 1e-6, 4, 8, A) == pytest.approx(4.06e-3 / 8)


def test_every_assumption_is_an_option_and_can_be_changed():
    for defaults in (A, Scenario()):
        parser = argparse.ArgumentParser()
        cost.add_assumptions(parser, defaults)
        text = " ".join(parser.format_help().split())
        for f in dataclasses.fields(defaults):
            option, value = f"--{f.name.replace('_', '-')}", getattr(defaults, f.name)
            assert option in text and f"({value})" in text
            given = "3" if f.type == "int" else "0.125"
            changed = cost.from_arguments(type(defaults), parser.parse_args([option, given]))
            assert changed == dataclasses.replace(defaults, **{f.name: float(given)})


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_counted_figures_fit_those_of_the_forward_pass(form):
    settings = (PLAIN, *FORMS[form])
    counts = counting.generator_counts("conf/imagenet_d16.yaml", *settings)
    config = configuration.load("conf/imagenet_d16.yaml", settings)
    forward = counting.forward_flops(config)
    passes = forward["content"] + forward["structure"]  # of all stages of an image
    assert (1 - counts.backward) * counts.flops == pytest.approx(passes, rel=0.01)  # and the logits of the clusters
    assert counts.flops == pytest.approx(3 * passes, rel=0.01)


D16 = "conf/imagenet_d16.yaml"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_clusters_of_256_positions_cost_what_they_are_to_cost():
    """d16, an image, exactly: content, both generators by schedule, training. Positions cost 0.97, 2.25, 1.39 and 4.15
    TFLOP."""
    content = {
        form: counting.forward_flops(configuration.load(D16, (PLAIN, *settings)))["content"]
        for form, settings in FORMS.items()
    }
    assert content["clusters"] <= 0.30 * content["positions"]
    for schedule, tera in (("few-step", 0.76), ("guided", 0.50)):
        parts = operations("d16", schedule, 1, "clusters")
        assert parts["structure"] + parts["content"] <= tera * 1e12, schedule
    assert counting.generator_counts(D16, PLAIN, *FORMS["clusters"]).flops <= 1.6e12


@pytest.mark.slow
def test_the_document_has_what_the_scripts_print():
    """d16's lines, the tokenizer's and all assumptions: counting d20 and d24 too would take a minute."""
    path = "conf/imagenet_d16.yaml"
    printed = cost.report([path], [8, 32, 64, 256], Assumptions()).splitlines()
    outcomes = simulation.runs(path, [64, 256], [], Assumptions(), Scenario(), 0)
    printed += simulation.report(outcomes, Scenario()).splitlines()
    document = DOC.read_text().splitlines()
    missing = [line for line in printed if line not in document]
    assert not missing, "run the commands of docs/reports/training_cost.md again and paste what they print"


def test_as_released_is_what_the_released_configuration_has():
    ours, theirs = configuration.load(D16, cost.RELEASED), configuration.load("conf/imagenet_d16_released.yaml")
    assert (ours.content, ours.structure, ours.train) == (theirs.content, theirs.structure, theirs.train)


# ---- the simulation ----

AT_ONCE = Scenario(upscaling_speed=100.0, boot_s=0.0, boot_spread=0.0, zone_share=1.0)
SMALL = dataclasses.replace(A, images=20_000)


def simulated(*settings, workers=16, spot=True, a=SMALL, scenario=Scenario(), seed=0, counts=COUNTS):  # noqa: B008
    config = configuration.load(
        "conf/imagenet_d16.yaml",
        ["train.steps=3000", "train.checkpoint_every=100", f"cluster.num_workers={workers}", *settings],
    )
    return simulate("run", config, counts, 1e-3, workers, spot, a, scenario, seed)


def test_without_delays_and_preemptions_it_takes_the_model_s_time():
    one = simulated(spot=False, scenario=AT_ONCE)
    config = one.training.config
    model = cost.train_generators(config, COUNTS, 16, SMALL)
    expected = 3600 * model.hours + cost.restart_seconds(COUNTS, 0, model.step.reading, SMALL)
    assert one.seconds - one.token_seconds == pytest.approx(expected, rel=1e-9)
    assert (one.training.resizes, one.training.failures, one.training.lost, one.cluster.preempted) == (0, 0, 0, 0)


@pytest.mark.parametrize("rate", [0.0, 1.0, 6.0])
def test_every_step_is_kept_once_and_gpu_time_adds_up(rate):
    one = simulated(a=dataclasses.replace(SMALL, preemptions=rate))
    assert one.training.kept == one.training.steps == 3000
    assert sum(one.shares.values()) == pytest.approx(1.0)
    assert min(one.shares.values()) >= 0
    computing = 3000 * 768 * COUNTS.flops / 124.8e12
    assert one.shares["computing"] * one.cluster.gpu_seconds == pytest.approx(computing)
    assert (one.cluster.preempted > 0) == (rate > 0)
    assert (one.training.failures > 0) == (rate > 0)


def test_the_seed_decides():
    a = dataclasses.replace(SMALL, preemptions=2.0)
    one, same, other = simulated(a=a), simulated(a=a), simulated(a=a, seed=1)
    assert one.cells() == same.cells() and one.training.history == same.training.history
    assert one.cluster.history == same.cluster.history != other.cluster.history


def test_preemptions_cost_time():
    seconds = [
        simulated(a=dataclasses.replace(SMALL, preemptions=rate), scenario=AT_ONCE).seconds for rate in (0.0, 2.0)
    ]
    assert seconds[0] < seconds[1]


@pytest.mark.parametrize("field", ["network_gb_s", "storage_gb_s", "fetch_gb_s", "checkpoint_gb_s"])
def test_more_bandwidth_never_hurts_a_cluster_that_stays(field):
    wide = dataclasses.replace(COUNTS, feature_bytes=40_000_000)
    seconds = [
        simulated(spot=False, scenario=AT_ONCE, a=dataclasses.replace(SMALL, **{field: value}), counts=wide).seconds
        for value in (0.5, 5.0, 50.0)
    ]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] > seconds[2]


def test_a_cluster_grows_by_the_rule_and_within_the_zone():
    env = simpy.Environment()
    scenario = dataclasses.replace(AT_ONCE, upscaling_speed=1.0, boot_s=60.0, zone_share=0.5, return_s=1e9)
    on_demand = Cluster(env, 32, False, A, scenario, 0)
    spot = Cluster(env, 32, True, dataclasses.replace(A, preemptions=0.0), scenario, 0)
    counts = []
    for until in (30, 70, 140, 210, 280, 350):
        env.run(until)
        counts.append(len(on_demand.nodes))
    assert counts == [0, 5, 10, 20, 32, 32]  # at most as many on their way as run, five at first
    assert len(spot.nodes) == 16


def test_training_goes_on_with_fewer_workers_and_takes_more_when_they_come():
    one = simulated(a=dataclasses.replace(SMALL, preemptions=2.0), scenario=Scenario(return_s=60.0))
    counts = {workers for _, workers in one.training.history}
    assert counts == {0, 8, 16}
    assert one.training.resizes > 0


def built(env, cluster, **changes):
    settings = {"reading": 2.0, "encoding": 1.0, "readers": 4, "encoders": 1, "store": 8} | changes
    return TokenBuild(env, cluster, 200, **settings)


@pytest.mark.parametrize(
    ("readers", "seconds"),
    [(4, 2 + 200 / 2), (1, 200 * 2 / 2 + 1)],
    ids=["encoders bound: two of them, after the first piece was read", "readers bound: two of them"],
)
def test_pieces_take_the_time_of_the_slower_side(readers, seconds):
    env = simpy.Environment()
    build = built(env, Cluster(env, 2, False, A, AT_ONCE, 0), readers=readers)
    env.run(env.process(build.run()))
    assert env.now == pytest.approx(seconds)
    assert sorted(build.done) == list(range(200))


@pytest.mark.parametrize("store", [1, 8])
def test_readers_wait_while_the_object_store_is_full(store):
    env = simpy.Environment()
    build = built(env, Cluster(env, 2, False, A, AT_ONCE, 0), store=store)
    env.run(env.process(build.run()))
    assert build.most_ready <= store
    assert len(build.todo.items) == 0


def test_pieces_of_lost_nodes_are_made_by_others_once():
    env = simpy.Environment()
    cluster = Cluster(env, 0, False, A, AT_ONCE, 0)
    build = built(env, cluster)

    def nodes_come_and_go():
        for number in range(40):
            cluster.nodes.append(Node(env.event()))
            cluster.changed()
            yield env.timeout(3.0 + 0.7 * (number % 4))  # some at the moment at which a piece is handed over
            if number > 1:
                cluster.nodes.pop(0).gone.succeed()
                cluster.changed()

    env.process(nodes_come_and_go())
    env.run(env.process(build.run()))
    assert sorted(build.done) == list(range(200))


def test_a_plot_is_drawn(tmp_path):
    simulation.draw([simulated()], str(tmp_path / "plot.png"))
    assert (tmp_path / "plot.png").stat().st_size > 10_000
