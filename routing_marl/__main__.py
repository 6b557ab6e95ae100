"""``python -m routing_marl`` is ``routing-marl``."""

from routing_marl.cli import main

main()
