"""What routing is compared with. Static sharing is routing with a fixed table over layers of as many blocks as it uses.

See :mod:`routing_marl.baselines.static`.
"""
