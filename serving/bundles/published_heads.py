"""The sizes of PMT's published decoders (the configs of github.com/tue-mps/pmt), by the reference of their file."""

from __future__ import annotations

from decoders.pmt_checkpoints import MaskDecoderSizes

_SMALL, _LARGE = (2, 5, 8, 11), (5, 11, 17, 23)
_IMAGES = "hf://tue-mps/{}/pytorch_model.bin"
_VIDEO = "hf://tue-mps/PMT_Video/{}"

PUBLISHED_HEADS: dict[str, MaskDecoderSizes] = {
    _IMAGES.format("coco_panoptic_pmt_small_640_dinov3"): MaskDecoderSizes(200, 133, 6, 384, _SMALL),
    _IMAGES.format("coco_panoptic_pmt_base_640_dinov3"): MaskDecoderSizes(200, 133, 6, 768, _SMALL),
    _IMAGES.format("coco_panoptic_pmt_large_640_dinov3"): MaskDecoderSizes(200, 133, 6, 1024, _LARGE),
    _IMAGES.format("coco_panoptic_pmt_large_1280_dinov3"): MaskDecoderSizes(200, 133, 6, 1024, _LARGE),
    _IMAGES.format("coco_instance_pmt_large_640_dinov3"): MaskDecoderSizes(200, 80, 6, 1024, _LARGE),
    _IMAGES.format("coco_instance_pmt_large_1280_dinov3"): MaskDecoderSizes(200, 80, 6, 1024, _LARGE),
    _IMAGES.format("ade20k_semantic_pmt_large_512_dinov3"): MaskDecoderSizes(100, 150, 6, 1024, _LARGE),
    **{
        _VIDEO.format(file): MaskDecoderSizes(200, classes, 6, 1024, _LARGE)
        for file, classes in (
            ("Dinov2_online/yt-2019_dinov2_online_68.8.pth", 40),
            ("Dinov3_online/yt-2019_dinov3_online_69.2.pth", 40),
            ("Dinov2_online/yt-2021_dinov2_online_63.8.pth", 40),
            ("Dinov3_online/yt-2021_dinov3_online_64.3.pth", 40),
            ("Dinov3_online/ovis_dinov3_online_52.0.pth", 25),
            ("Dinov2_online/vipseg_dinov2_online_55.3_48.2.pth", 124),
            ("Dinov3_online/vipseg_dinov3_online_55.5_49.2.pth", 124),
            ("Dinov2_online/vspw_dinov2_online_94.6_64.3.pth", 124),
            ("Dinov3_online/vspw_dinov3_online_94.9_65.7.pth", 124),
        )
    },
}
