"""The engine as a gRPC service: sessions, transport and protection around vs3r.engine.pipeline. See docs/server.md."""
