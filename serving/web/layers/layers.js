/* Which layer shows which kind of result over a picture. */

import { DepthLayer } from "./depth_layer.js";
import { FeatureLayer } from "./feature_layer.js";
import { SegmentLayer } from "./segment_layer.js";

/**
 * The layer of a result; null for one that is no picture. `labels` are the task's from GET /tasks, `image` is the
 * answer's size, `previous` the same task's layer of the frame before: a video's colours should not flicker.
 */
export async function layerOf(result, labels, image, previous = null) {
  switch (result.kind) {
    case "depth":
      return DepthLayer.fromResult(result, previous);
    case "panoptic":
    case "semantic":
    case "instance":
      return new SegmentLayer(result, labels, image);
    case "dense_embedding":
      return new FeatureLayer(result, previous);
    default:
      return null;
  }
}
