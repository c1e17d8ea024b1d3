"""docs/figures/architecture.svg: the way of the data through jobs, packages and artifacts."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import NamedTuple

BOX, GAP, LEFT = 190, 26, 20  # width of a column, between two of them, beside them all
WIDTH, HEIGHT = 2 * LEFT + 5 * BOX + 4 * GAP, 515
JOBS, ROOMS, ARTIFACTS, BASE = 100, 200, 310, 440  # tops of the rows
INK, PAPER = "#1d2433", "#fbfbfd"
COLOURS = {"job": "#dbe7ff", "room": "#ffffff", "artifact": "#d9f2e3", "base": "#eceef3", "images": "#fde9c8"}


class Column(NamedTuple):
    """A job, the packages that it works in, and what it leaves; each a title and a line below it."""

    job: tuple[str, str]
    rooms: tuple[str, str]
    artifact: tuple[str, str]


COLUMNS = (
    Column(
        ("train_tokenizer.py", "Ray Train"),
        ("nvg/training", "nvg/autoencoder"),
        ("tokenizer-<key>/", "encoder and decoder"),
    ),
    Column(
        ("build_tokens.py", "Ray Data"),
        ("nvg/data", "nvg/granularity.py"),
        ("tokens-<key>/", "Parquet, a row per view"),
    ),
    Column(
        ("train.py, distill.py", "Ray Train"),
        ("nvg/training", "nvg/generator"),
        ("generators-<key>/", "the sampler: nvg.load"),
    ),
    Column(
        ("evaluate.py", "Ray Data"),
        ("nvg/evaluation", "nvg/frozen"),
        ("evaluation-<key>/", "figures, intervals"),
    ),
    Column(("serve.py", "Ray Serve"), ("nvg/serving", "engine, routes, studio"), ("http://...:8000", "API and studio")),
)
FOUNDATION = (
    ("nvg/config", "every setting"),
    ("nvg/artifacts", "keys, folders, leases"),
    ("nvg/storage.py", "disk and object stores"),
    ("nvg/cluster.py", "Ray"),
    ("nvg/tracking.py", "MLflow"),
)
READS_IMAGES = (0, 1, 3)  # columns


def picture() -> str:
    """The SVG's text."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="system-ui, sans-serif" font-size="16">',
        "<title>Images become tokenizer, tokens, generators; the sampler is evaluated and served</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{INK}"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="12" fill="{PAPER}"/>',
        *_images(),
        *_columns(),
        *_between(),
        *_foundation(),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def left(column: int) -> int:
    """The left edge of a column."""
    return LEFT + column * (BOX + GAP)


def box(x: int, y: int, width: int, height: int, kind: str, lines: tuple[str, ...]) -> Iterator[str]:
    """A rectangle with centred lines, the first of them bold."""
    yield (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{COLOURS[kind]}" '
        f'stroke="{INK}" stroke-width="1"/>'
    )
    first = y + height / 2 - 10 * (len(lines) - 1) + 6
    for number, line in enumerate(lines):
        weight = "600" if number == 0 else "400"
        size = 16 if number == 0 else 14
        yield (
            f'<text x="{x + width / 2:g}" y="{first + 20 * number:g}" text-anchor="middle" fill="{INK}" '
            f'font-weight="{weight}" font-size="{size}">{escape(line)}</text>'
        )


def line(*points: tuple[int, int], tip: bool = True) -> str:
    """A path along points, with an arrow at its end."""
    path = " L".join(f"{x} {y}" for x, y in points)
    end = ' marker-end="url(#tip)"' if tip else ""
    return f'<path d="M{path}" fill="none" stroke="{INK}" stroke-width="1.5"{end}/>'


def _images() -> Iterator[str]:
    """The images on top, and the jobs that read them."""
    centre = [left(column) + BOX // 2 for column in range(len(COLUMNS))]
    yield line((LEFT + BOX, 40), (centre[READS_IMAGES[-1]], 40), tip=False)
    for column in READS_IMAGES:
        yield line((centre[column], 60 if column == 0 else 40), (centre[column], JOBS))
    yield from box(LEFT, 20, BOX, 40, "images", ("images",))


def _columns() -> Iterator[str]:
    """Job, packages and artifact of every step, from top to bottom."""
    for number, column in enumerate(COLUMNS):
        x, middle = left(number), left(number) + BOX // 2
        yield line((middle, JOBS + 60), (middle, ROOMS))
        yield line((middle, ROOMS + 70), (middle, ARTIFACTS))
        yield from box(x, JOBS, BOX, 60, "job", column.job)
        yield from box(x, ROOMS, BOX, 70, "room", column.rooms)
        yield from box(x, ARTIFACTS, BOX, 60, "artifact", column.artifact)


def _between() -> Iterator[str]:
    """What a step reads of the one before it: the artifact's way up to the next job."""
    for number in range(3):
        gutter = left(number) + BOX + GAP // 2
        out, into = (left(number) + BOX, ARTIFACTS + 30), (left(number + 1), JOBS + 30)
        yield line(out, (gutter, ARTIFACTS + 30), (gutter, JOBS + 30), into)
    bottom, gutter = ARTIFACTS + 85, left(3) + BOX + GAP // 2
    sampler = left(2) + BOX // 2
    out, into = (sampler, ARTIFACTS + 60), (left(4), JOBS + 30)
    yield line(out, (sampler, bottom), (gutter, bottom), (gutter, JOBS + 30), into)


def _foundation() -> Iterator[str]:
    """What every job stands on."""
    for number, lines in enumerate(FOUNDATION):
        yield from box(left(number), BASE, BOX, 54, "base", lines)
