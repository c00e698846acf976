"""The papers' terms in a few lines each, to be compared with the papers.

Where a term has a faster version, ``kernel/`` holds it in a module of the same name, with the same name and arguments,
and that one trains. A formula without a kernel is what trains.
"""
