"""What a comparison costs, told before it is begun and while it goes on."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from b4m.evaluation.times import read_times
from b4m.plan import Plan

# Seconds on one core of a two-core x86 machine with the base of `data/models/mini-sdxl` and its
# recipe; what was measured in the folder goes before them.
_TRAINING, _LEARNED, _CLOSED, _IMAGE = 50.0, 30.0, 0.5, 0.4


def cost_of(jobs: Plan, seeds: int, folder: Path) -> str:
    """A few lines: how many jobs there are, how many are done, how long the others take.

    Args:
        jobs: the plan.
        seeds: images of one sample job.
        folder: of the comparison; what is done there need not be done again, and how long it took
            tells how long the rest will take.
    """
    done = {time.key for time in read_times(folder)}
    lines = [f"{'':<34}{'jobs':>6}{'done':>6}{'minutes left':>14}"]
    total = 0.0
    for what, keys, seconds in _kinds(jobs, seeds, folder):
        left = sum(key not in done for key in keys)
        total += left * seconds
        minutes = f"{left * seconds / 60:.1f}"
        lines.append(f"{what:<34}{len(keys):>6}{len(keys) - left:>6}{minutes:>14}")
    images = len(jobs.samples) * seeds
    lines.append(
        f"{images} images; about {total / 60:.0f} minutes left on one core, estimated with"
    )
    lines.append("mini-SDXL's times where nothing was measured here yet; scoring is not counted")
    return "\n".join(lines)


def _kinds(jobs: Plan, seeds: int, folder: Path) -> Iterator[tuple[str, list[str], float]]:
    """Each kind of job: its name, the keys, seconds of one."""
    measured: dict[tuple[str, str], list[float]] = defaultdict(list)
    for time in read_times(folder):
        measured[time.stage, time.method].append(time.seconds)
        measured[time.stage, ""].append(time.seconds)
    for way in Counter(job.training for job in jobs.trainings):
        keys = [job.key for job in jobs.trainings if job.training == way]
        known = measured.get(("training", way)) or measured.get(("training", "")) or [_TRAINING]
        yield f"trainings {way}", keys, mean(known)
    for name in Counter(job.method for job in jobs.merges):
        own = [job for job in jobs.merges if job.method == name]
        known = measured.get(("merge", name)) or [_LEARNED if own[0].learned else _CLOSED]
        yield f"merges {name}", [job.key for job in own], mean(known)
    yield (
        f"sets of {seeds} images",
        [job.key for job in jobs.samples],
        mean(measured.get(("images", "")) or [_IMAGE * seeds]),
    )
