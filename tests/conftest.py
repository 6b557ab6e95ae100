"""Shapes in signatures are checked while the tests run; small helpers that several tests share."""

from jaxtyping import install_import_hook

install_import_hook("routing_marl", "beartype.beartype")
