"""What routing is compared with; docs/methods.md tells them apart.

* :mod:`~routing_marl.baselines.static`: routing with a fixed table, over layers of as many blocks as it uses.
* :mod:`~routing_marl.baselines.cross_stitch`: a column of layers per task, and learned mixing.
* :mod:`~routing_marl.baselines.mixture`: networks of gates per task or instance that weigh all blocks.
* :mod:`~routing_marl.baselines.mixture_layers`: the layers that such gates sit in.
* :mod:`~routing_marl.baselines.sparse`: gates that send each instance to its best blocks.
"""
