"""Stand-ins that keep what they are given: a progress bar, an MLflow run, the figures of a served model."""

from collections import Counter


class SilentBar:
    def __init__(self, total, description):
        self.total, self.descriptions, self.steps = total, [description], 0

    def update(self, n=1):
        self.steps += n

    def set_description(self, desc):
        self.descriptions.append(desc)

    def close(self):
        pass


class Recorder:
    """In place of an MLflow run."""

    def __init__(self, run_id):
        self.id = run_id or "run-1"
        self.points, self.images, self.status = {}, [], None

    def log_metrics(self, metrics, step):
        self.points[step] = dict(metrics)

    def log_image(self, image, name):
        self.images.append(name)

    def end(self, status="FINISHED"):
        self.status = status


class Recorded:
    """The figures of an engine and of the routes, in lists."""

    def __init__(self):
        self.batches, self.stages, self.queues, self.requests = [], [], [], Counter()

    def queue(self, images):
        self.queues.append(images)

    def batch(self, images):
        self.batches.append(images)

    def stage(self, stage, seconds):
        self.stages.append(stage)

    def request(self, route, status, seconds):
        self.requests[route, status] += 1
