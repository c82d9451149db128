"""bootflow's core: bytes in, trace out. Never imports app, flask or jinja2."""
