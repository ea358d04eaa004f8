"""The ways in that are polyhead's own: HTTP, gRPC and the web socket. None knows of Ray."""
