"""The ways to a server, one a file: each sends a picture or codes and says what came of it."""
