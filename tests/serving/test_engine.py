"""The engine: what is batched, cancelled, refused, and that none of it changes a picture."""

import asyncio
import dataclasses
from contextlib import aclosing

import numpy as np
import pytest

from nvg.serving.engine import Engine, ImageDone, Job, StageDone
from nvg.serving.errors import RequestError
from tests.support.recorders import Recorded


def job(model, classes, seed=0, watched=(), given=None, **settings):
    settings = dataclasses.replace(model.sampler.settings, **settings)
    return Job(model, classes, [seed + j for j in range(len(classes))], settings, given, frozenset(watched))


async def images(engine, job):
    engine.submit(job)
    done = [result async for result in engine.results(job) if isinstance(result, ImageDone)]
    return [result.pixels for result in sorted(done, key=lambda result: result.index)]


async def first(engine, job):
    """Listen until the first event, then go away."""
    async with aclosing(engine.results(job)) as results:
        async for _ in results:
            return


def drive(test, **settings):
    async def inside():
        figures = Recorded()
        engine = Engine(**({"max_batch": 4, "max_queue": 32, "batch_wait_ms": 1} | settings), observer=figures)
        try:
            return await test(engine, figures)
        finally:
            await engine.close()

    return asyncio.run(inside())


def test_requests_are_drawn_together_and_an_image_is_what_it_is_alone(model):
    jobs = [
        job(model, [0, 1, 2], seed=0),
        job(model, [8], seed=5, content_guidance=1.0, structure_guidance=1.0),
        job(model, [3, 3, 3, 3, 3, 3], seed=7, top_p=0.9),
    ]

    async def together(engine, figures):
        return await asyncio.gather(*(images(engine, one) for one in jobs)), figures.batches

    made, batches = drive(together)
    assert sum(batches) == 10 and max(batches) == 4  # a job's six images are spread over batches
    for one, pictures in zip(jobs, made, strict=True):
        alone = model.sampler.generate(one.classes, seed=one.seeds, **dataclasses.asdict(one.settings))
        assert np.array_equal(np.stack(pictures), alone)


def test_another_number_of_flow_steps_is_another_batch_and_waits_its_turn(model):
    async def test(engine, figures):
        jobs = [job(model, [0]), job(model, [1], flow_steps=1), job(model, [2])]
        await asyncio.gather(*(images(engine, one) for one in jobs))
        return figures.batches, [one.batches for one in jobs]

    batches, by_job = drive(test)
    assert batches == [2, 1] and by_job == [[2], [1], [2]]


def test_stages_that_are_watched_come_one_by_one_with_their_maps(model):
    async def test(engine, figures):
        watching = job(model, [4, 5], watched=range(5))
        engine.submit(watching)
        return [result async for result in engine.results(watching)]

    results = drive(test)
    stages = [(result.stage, result.index) for result in results if isinstance(result, StageDone)]
    assert stages == [(stage, index) for stage in range(5) for index in range(2)]
    for result in results:
        if isinstance(result, StageDone):
            counts = np.bincount(result.structure.flatten(), minlength=2**result.stage)
            assert counts.tolist() == [16 >> result.stage] * 2**result.stage
    last = [result for result in results if isinstance(result, StageDone) and result.stage == 4]
    done = [result for result in results if isinstance(result, ImageDone)]
    for stage, image in zip(last, done, strict=True):
        assert np.array_equal(stage.preview, image.pixels)


def test_a_client_that_goes_away_stops_the_sampler_between_stages(model):
    async def test(engine, figures):
        gone = job(model, [0, 1, 2, 3, 4, 5, 6, 7], watched=range(5))
        engine.submit(gone)
        await first(engine, gone)
        await asyncio.sleep(0)
        queued = engine.queued
        after = await images(engine, job(model, [9], seed=1))  # the engine goes on
        return queued, figures, after

    queued, figures, after = drive(test)
    assert queued == 0  # the images that had not started were taken out
    started = figures.stages[: figures.stages.index(0, 1)]
    assert len(started) < 5, "the batch nobody waited for ran to its end"
    assert np.array_equal(after[0], model.sampler.generate([9], seed=1)[0])


def test_one_client_going_away_does_not_touch_its_batch_mates(model):
    async def test(engine, figures):
        gone, stays = job(model, [0], watched=range(5)), job(model, [1], seed=3)
        engine.submit(gone)
        engine.submit(stays)
        await first(engine, gone)
        done = [result.pixels async for result in engine.results(stays)]
        return done, stays.batches

    done, batches = drive(test)
    assert batches == [2]
    assert np.array_equal(done[0], model.sampler.generate([1], seed=3)[0])


def test_a_full_queue_refuses_with_the_time_to_wait(model):
    async def test(engine, figures):
        taken = job(model, [0] * 8)
        engine.submit(taken)
        with pytest.raises(RequestError) as refused:
            engine.submit(job(model, [1]))
        assert refused.value.status == 429 and refused.value.retry_after >= 1
        [_ async for _ in engine.results(taken)]
        return len(await images(engine, job(model, [1]))), max(figures.queues)

    assert drive(test, max_queue=8) == (1, 8)


def test_a_batch_that_fails_fails_its_requests_and_no_others(model):
    async def test(engine, figures):
        bad = job(model, [0])
        bad.given = "nonsense"
        with pytest.raises(RequestError) as failed:
            await images(engine, bad)
        assert failed.value.status == 500 and engine.alive
        return await images(engine, job(model, [2], seed=4))

    assert np.array_equal(drive(test)[0], model.sampler.generate([2], seed=4)[0])


def test_functions_of_the_model_run_between_batches(model):
    async def test(engine, figures):
        drawing = asyncio.create_task(images(engine, job(model, [0, 1])))
        return await engine.call(lambda: 41 + 1), len(await drawing)

    assert drive(test) == (42, 2)
