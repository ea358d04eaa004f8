"""The gRPC API, `polyhead.v1`: segmentation.proto, and what protoc makes of it (`make protos`; never edited)."""
