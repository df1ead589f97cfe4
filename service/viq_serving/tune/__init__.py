"""What `viq tune` does: the engine of the service, measured on this machine with a mix of pictures."""
