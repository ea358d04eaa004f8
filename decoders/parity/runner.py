"""Running a folder's cases: each is told by what it holds, and one that breaks does not stop the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from decoders.parity import image, inputs, postprocess, video
from decoders.parity.cases import Case, CaseError, find_cases
from decoders.parity.report import CaseReport
from encoders.key_map import CheckpointError


@dataclass(frozen=True)
class Kind:
    """A kind of case. `fits`: whether a case holds one; `run`: compare all that belongs to it."""

    name: str
    fits: Callable[[Case], bool]
    run: Callable[[Case], None]


KINDS = (
    Kind("stages of a picture model", image.has_stages, image.run_stages),
    Kind("pictures to results", image.has_pictures, image.run_pictures),
    Kind("video model", video.has_frames, video.run_frames),
    Kind("clip post-processing", video.has_clip_logits, video.run_clip_logits),
    Kind("panoptic merge", postprocess.has_panoptic, postprocess.run_panoptic),
    Kind("instances", postprocess.has_instances, postprocess.run_instances),
    Kind("semantic windows", postprocess.has_semantic, postprocess.run_semantic),
    Kind("scaling and padding", inputs.has_scaling, inputs.run_scaling),
    Kind("resampling", inputs.has_resampling, inputs.run_resampling),
)


def run_folder(
    folder: Path, report: Callable[[CaseReport], None], begin: Callable[[str], None] = lambda name: None
) -> list[CaseReport]:
    """Run every case of a folder.

    Args:
        folder: of X.json and X.safetensors, and the weights that they need.
        report: called with each case's report as soon as it is there.
        begin: called with a case's name before it runs.

    Returns:
        The reports, by name. A case passes if all in it was understood, something was compared, and all agreed.

    Raises:
        NoCasesError: there is no case in the folder.
    """
    reports = []
    for name in find_cases(folder):
        begin(name)
        reports.append(run_case(folder, name))
        report(reports[-1])
    return reports


@torch.no_grad()
def run_case(folder: Path, name: str) -> CaseReport:
    """Run one case; what goes wrong is told in its report."""
    start = time.perf_counter()
    case: Case | None = None
    kinds: list[str] = []
    problems: list[str] = []
    try:
        case = Case.read(folder, name)
        for kind in (kind for kind in KINDS if kind.fits(case)):
            kinds.append(kind.name)
            kind.run(case)
    except (CaseError, CheckpointError, FileNotFoundError) as error:
        problems.append(str(error))
    except Exception as error:  # noqa: BLE001  # a case may hold anything, and the others are to run
        problems.append(f"{type(error).__name__}: {error}")
    if case is not None:
        if not kinds:
            problems.append("not understood: its tensors are of no kind of case that is known here")
        if not problems and case.not_understood:
            problems.append(f"not understood, nothing compares: {', '.join(case.not_understood)}")
        if not problems and not case.comparisons:
            problems.append("nothing was compared")
    return CaseReport(
        name=name,
        kinds=tuple(kinds),
        comparisons=tuple(case.comparisons) if case else (),
        skipped=tuple(case.skipped) if case else (),
        problems=tuple(problems),
        seconds=time.perf_counter() - start,
    )
