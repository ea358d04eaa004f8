"""Video streams: a stream's frames and state, all streams of a replica, and what a frame may be."""
