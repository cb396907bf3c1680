"""Experiments: a topology, a graph and a workload, measured at every point of a sweep.

`document` reads the TOML file, `plan` makes the points, `measure` runs one of them in one process, `runner`
all of them, `summary` and `engine.report` say what came out. `engine bench` measures a single point.
"""
