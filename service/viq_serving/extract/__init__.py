"""Many images to shards of codes: resumable, in a fixed order, with memory bounded by what is under way."""
