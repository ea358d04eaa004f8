"""Do identities keep to their objects? On pseudo-clips cut from labelled photos, so that each frame's truth is known.

    python -m loadtests.identities --data COCO_FOLDER

A clip is a window that glides and zooms over a photo. Each thing that is in view in every frame is an object; a frame
in which a segment covers it (intersection over union above 0.5) counts, and the identity that most of these frames
carry is the object's. Objects covered in fewer than two frames say nothing about identities and are left out of the
ratio. Raw figures, machine and commit go to a JSON file under `loadtests/results`.
"""  # fmt: skip

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from decoders.results import PanopticResult
from decoders.training.data.coco import load_coco_panoptic
from decoders.training.data.samples import PanopticSample
from decoders.training.evaluation.clips import pseudo_clip
from loadtests.machine import commit, machine
from serving.cli.evaluation_answers import answer_clips
from serving.config import Settings
from serving.engine import Engine
from serving.types import PredictOptions

RESULTS = Path(__file__).parent / "results"
LEAST_PART = 0.01
"""An object covers at least this part of every frame."""


def main(
    data: Annotated[Path, typer.Option(help="COCO panoptic folder.", exists=True, file_okay=False)],
    split: Annotated[str, typer.Option(help="Photos that the head was not trained on.")] = "val2017",
    bundle: Annotated[str, typer.Option(help="A bundle with the task.")] = "demo",
    task: Annotated[str, typer.Option(help="A panoptic head that remembers.")] = "video",
    frames: Annotated[int, typer.Option(help="Frames of a clip.")] = 12,
    photos: Annotated[int, typer.Option(help="Most photos.")] = 40,
) -> None:
    """Measure and write the raw figures."""
    engine = Engine.from_bundle(bundle, cache_dir=Settings().cache_dir)
    label_set = engine.bundle.label_sets[task]
    clips: list[dict[str, Any]] = []
    for sample in load_coco_panoptic(data, split, label_set).samples[:photos]:
        objects = run_clip(engine, task, sample, frames)
        clips.append({"photo": sample.name, "objects": objects})
        print(f"{len(clips):3d}  {sample.name}: {len(objects)} objects", flush=True)
    every = [each for clip in clips for each in clip["objects"]]
    told = [each for each in every if each["covered_frames"] >= 2]
    covered, kept = (sum(each[f"{what}_frames"] for each in told) for what in ("covered", "kept"))
    figures = {
        "photos": len(clips),
        "frames_per_clip": frames,
        "objects": len(every),
        "object_frames": frames * len(every),
        "objects_covered_twice": len(told),
        "covered_frames": covered,
        "kept_frames": kept,
        "kept_of_covered": kept / covered if covered else None,
    }
    raw = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "bundle": bundle,
        "task": task,
        "split": split,
        "figures": figures,
        "clips": clips,
    }
    print(json.dumps(figures, indent=1))
    target = RESULTS / f"identities-{datetime.now(UTC):%Y%m%d-%H%M}.json"
    target.write_text(json.dumps(raw, indent=1) + "\n")
    print(f"wrote {target}")


def run_clip(engine: Engine, task: str, sample: PanopticSample, frames: int) -> list[dict[str, Any]]:
    """Frames covered and frames kept of every object of one photo's clip."""
    label_set = engine.bundle.label_sets[task]
    clip = pseudo_clip(sample, frames)
    _, labels, crowd_ids = sample.read_segments()
    things = [i for i, label in labels.items() if label_set[label].is_thing and i not in crowd_ids]
    truths = [frame.read_segments().segment_map for frame in clip.frames if isinstance(frame, PanopticSample)]
    objects = [i for i in things if all((truth == i).mean() >= LEAST_PART for truth in truths)]
    if not objects:
        return []
    tracks: dict[int, list[int]] = {i: [] for i in objects}
    pictures = [(frame.name, frame.read_image()) for frame in clip.frames]
    [results] = answer_clips(engine, [pictures], task, PredictOptions(), batch_size=1)
    for result, truth in zip(results, truths, strict=True):
        assert isinstance(result, PanopticResult)
        for i in objects:
            track = track_on(result, truth == i)
            if track is not None:
                tracks[i].append(track)
    return [
        {
            "label": label_set[labels[i]].name,
            "covered_frames": len(tracks[i]),
            "kept_frames": max(Counter(tracks[i]).values(), default=0),
            "tracks": tracks[i],
        }
        for i in objects
    ]


def track_on(result: PanopticResult, mask: NDArray[np.bool_]) -> int | None:
    """The identity of the thing that covers an object, or None."""
    for segment in result.segments:
        if segment.track_id is not None:
            found = result.segment_map == segment.segment_id
            union = np.count_nonzero(found | mask)
            if union and np.count_nonzero(found & mask) / union > 0.5:
                return segment.track_id
    return None


if __name__ == "__main__":
    typer.run(main)
