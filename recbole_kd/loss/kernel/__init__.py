"""The fast versions of the formulas in ``loss/``, used in training. Each is tested against its formula.

The kernels use the tools ``autograd``, ``gather``, ``layout`` and ``streamed``, which have no formula in ``loss/``.
"""
