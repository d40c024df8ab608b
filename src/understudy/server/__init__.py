"""The server: an ASGI application over one loaded model. Only `understudy serve` imports it, with the extra `serve`."""
