"""Writing segments as a plain COCO panoptic folder, which `load_coco_panoptic` and others' tools read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from decoders.labels import LabelSet
from decoders.results import PanopticResult
from decoders.segment_png import segment_image

INDEX = "annotations.json"


class PanopticFolder:
    """``annotations.json`` and ``panoptic/*.png`` of some pictures, which stay where they are: ``images`` is a link.

    Args:
        root: the folder to write; made if absent.
        pictures: the folder of the pictures.
        label_set: the classes; category ids count from 1.

    Raises:
        FileExistsError: `root` is not empty.
    """

    def __init__(self, root: Path, pictures: Path, label_set: LabelSet) -> None:
        if root.exists() and any(root.iterdir()):
            raise FileExistsError(f"{root} is not empty; labelled data needs a new folder of its own")
        (root / "panoptic").mkdir(parents=True, exist_ok=True)
        (root / "images").symlink_to(pictures.resolve(), target_is_directory=True)
        self._root = root
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._categories = [
            {"id": label.label_id + 1, "name": label.name, "supercategory": label.name, "isthing": int(label.is_thing)}
            for label in label_set.labels
        ]

    def add(self, name: str, result: PanopticResult) -> None:
        """Write one picture's segments with their scores; void stays unlabelled.

        Args:
            name: of the picture below its folder.
            result: in the picture's own pixels.
        """
        height, width = result.segment_map.shape
        image_id, png = len(self._images) + 1, f"{name}.png"
        path = self._root / "panoptic" / png
        path.parent.mkdir(parents=True, exist_ok=True)
        segment_image(result.segment_map).save(path)
        self._images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        segments = [
            {
                "id": segment.segment_id,
                "category_id": segment.label_id + 1,
                "area": segment.area,
                "bbox": list(segment.bbox),
                "iscrowd": 0,
                "score": round(segment.score, 4),
            }
            for segment in result.segments
        ]
        self._annotations.append({"image_id": image_id, "file_name": png, "segments_info": segments})

    def finish(self) -> None:
        """Write the index, without which the folder holds no data."""
        index = {"images": self._images, "annotations": self._annotations, "categories": self._categories}
        (self._root / INDEX).write_text(json.dumps(index), encoding="utf-8")
