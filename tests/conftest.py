"""The garbage collector leaves alone what importing the tests has made: it would look at these objects again and again,
for seconds of each process."""

import gc

gc.disable()


def pytest_collection_finish() -> None:
    """From the first test on what it makes is collected, and nothing before."""
    gc.freeze()
    gc.enable()
