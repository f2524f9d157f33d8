"""The wire: engine.proto, the modules made of it, and what server and client both need to speak it."""
