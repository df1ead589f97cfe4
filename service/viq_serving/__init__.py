"""The ViQ service, its client and the `viq` command."""
