"""Clients of `vs3r serve`: vs3r.engine.client.sync.Client and vs3r.engine.client.aio.AsyncClient. docs/server.md."""
