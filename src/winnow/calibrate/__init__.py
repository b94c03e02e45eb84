"""Walks a model block by block over calibration batches, streamed from its shards where memory is short."""
