"""The load generator behind `viq bench`: pictures of some mix of sizes, sent through some door, timed. No torch."""
