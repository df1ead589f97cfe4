"""Proof of the code promise: an image's codes are the same alone, in any company and through every door."""
