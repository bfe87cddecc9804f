"""What `pyproject.toml` names."""

from kdjax.recipes import flower

client = flower.client_app()
server = flower.server_app()
