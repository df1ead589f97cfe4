"""The `viq` command, one file for each subcommand. What needs torch imports it when it runs, not before."""
