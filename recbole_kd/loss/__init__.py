"""The papers' loss terms, each in a few lines that can be compared with the paper.

Some terms have a faster version, a kernel: ``kernel/`` holds it in a module of the same name, under the same name and
with the same arguments. Training uses the kernel if there is one, and the formula otherwise.
"""
