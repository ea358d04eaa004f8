"""What happens before a network: pictures scaled and padded, and learned positions and kernels resampled."""

from __future__ import annotations

import math

from decoders.parity.cases import Case
from decoders.parity.postprocess import to_picture
from encoders.geometry import FitGeometry, ShortestEdgeGeometry
from encoders.preprocess import to_pixels
from encoders.resample import resample_patch_kernel, resample_positions


def has_scaling(case: Case) -> bool:
    """Whether pictures are to be padded, or sizes of scaled pictures are listed."""
    return bool(case.numbers(r"padded_u8\.(\d+)")) or "detectron2_shortest_edge" in case.facts


def run_scaling(case: Case) -> None:
    """Scale and pad every picture to the byte; and compute every size of the shortest-edge table."""
    items = case.fact("items", default=[])
    for number in case.numbers(r"padded_u8\.(\d+)"):
        item = items[number] if number < len(items) else {}
        picture = to_picture(case.input(f"image_u8.{number}"))
        size = item.get("img_size") or case.expected(f"padded_u8.{number}").shape[-2:]
        size = (size, size) if isinstance(size, int) else size
        geometry = FitGeometry(*size).place((picture.height, picture.width))
        if "image_size" in item:
            case.compare_list(f"items[{number}].image_size", list(geometry.image_size), item["image_size"])
        if "scaled" in item:
            case.compare_list(f"items[{number}].scaled", list(geometry.scaled_size), item["scaled"])
        case.compare(f"padded_u8.{number}", to_pixels(picture, geometry), "exact")
    table = case.fact("detectron2_shortest_edge", default=[])
    if table:
        placed = [
            ShortestEdgeGeometry(row["min_size"], row.get("max_size", 1333)).place((row["hw"][0], row["hw"][1]))
            for row in table
        ]
        sizes = [list(geometry.scaled_size) for geometry in placed]
        case.compare_list(f"shortest-edge sizes ({len(table)})", sizes, [row["out"] for row in table])
    else:
        case.skipped.append("detectron2_shortest_edge")


def has_resampling(case: Case) -> bool:
    """Whether learned positions or patch kernels are to be resampled."""
    return case.has("pos_embed_src") or case.has("proj_weight_src")


def run_resampling(case: Case) -> None:
    """Resample positions to another grid and kernels to another patch, as timm does for DINOv2 with registers."""
    if case.has("pos_embed_src"):
        positions = case.input("pos_embed_src")
        side = math.isqrt(positions.shape[1])
        source = case.size("src_grid") if "src_grid" in case.facts else (side, side)
        resampled = resample_positions(positions, source, case.size("dst_grid"), antialias=True)
        case.compare("pos_embed_dst", resampled, "resampling")
    if case.has("proj_weight_src"):
        kernel = case.input("proj_weight_src")
        patch = case.fact("dst_patch", default=None) or case.expected("proj_weight_dst").shape[-1]
        case.compare("proj_weight_dst", resample_patch_kernel(kernel, patch), "resampling")
    case.skip_absent("pos_embed_dst", "proj_weight_dst")
