"""Checkpoints of other tools: each reader ends in an `NMWeight`, and compressed-tensors files are written too.

Modules are imported by name. `quant.formats.folder` reads a model folder of any of the formats that
`quant.formats.detect` knows; each format has a module of its own beside them.
"""
