"""The fast versions of the formulas in ``loss/``: these train. Each is tested against its formula.

``autograd``, ``gather``, ``layout`` and ``streamed`` are their tools and have no formula of their own.
"""
